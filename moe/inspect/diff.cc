#include "moe/inspect/diff.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/base/quantities.h"
#include "moe/cost/step_runs.h"
#include "moe/inspect/buffers.h"
#include "moe/inspect/stage_view.h"
#include "moe/inspect/timeline.h"

namespace moe::inspect {
namespace {

// "+12.5%", "-", "new", "gone".
std::string Change(double a, double b) {
  if (a == b) return "=";
  if (a == 0) return "new";
  if (b == 0) return "gone";
  return absl::StrFormat("%+.1f%%", 100 * (b - a) / a);
}

std::string Bytes(double bytes) { return bytes == 0 ? "-" : BytesText(bytes); }

std::map<std::string, std::string> NotesByPass(const Program& p) {
  std::map<std::string, std::vector<std::string>> lines;
  for (const auto& [pass, line] : p.notes) lines[pass].push_back(line);
  std::map<std::string, std::string> out;
  for (const auto& [pass, list] : lines) out[pass] = absl::StrJoin(list, "; ");
  return out;
}

// The passes of both in the order of a, then what only b has.
std::vector<std::string> Passes(const Program& a, const Program& b) {
  std::vector<std::string> out;
  for (const Program* p : {&a, &b}) {
    for (const auto& [pass, line] : p->notes) {
      if (std::find(out.begin(), out.end(), pass) == out.end()) out.push_back(pass);
    }
  }
  return out;
}

std::string MeshText(const Program& p) { return p.module->mesh().ToString(); }

std::string RowText(const Schedule& s, size_t stage) {
  if (stage >= s.table.size()) return "";
  std::vector<std::string> cells;
  for (const Schedule::Cell& c : s.table[stage]) {
    cells.push_back(absl::StrCat(std::string(1, c.kind), c.chunk, ".", c.microbatch));
  }
  return absl::StrJoin(cells, " ");
}

class Differ {
 public:
  Differ(const DiffSide& a, const DiffSide& b)
      : name_a_(a.name),
        name_b_(b.name),
        a_(*a.program),
        b_(*b.program),
        target_a_(a.target),
        target_b_(b.target) {}

  std::string Text() {
    out_ = absl::StrCat("A   ", name_a_, "\nB   ", name_b_, "\n");
    Same("mesh", MeshText(a_), MeshText(b_));
    Schedules();
    PassNotes();
    Nodes();
    Collectives();
    Memory();
    return std::move(out_);
  }

 private:
  void Section(absl::string_view name) { absl::StrAppend(&out_, "\n", name, "\n"); }

  void Same(absl::string_view what, const std::string& a, const std::string& b) {
    if (a == b) {
      absl::StrAppend(&out_, "  ", what, "   same   ", Shorten(a, 80), "\n");
    } else {
      absl::StrAppend(&out_, "  ", what, "\n    A   ", Shorten(a, 92), "\n    B   ", Shorten(b, 92), "\n");
    }
  }

  void Schedules() {
    Section("schedule");
    const auto describe = [](const Program& p, const Timeline& t) {
      return absl::StrCat(p.schedule.name.empty() ? "none" : p.schedule.name, ", ", NumStages(p), " stages, ",
                          p.schedule.microbatches, " microbatches, bubble ", ShareText(t.bubble));
    };
    const Timeline ta = EstimatedTimeline(a_, target_a_), tb = EstimatedTimeline(b_, target_b_);
    Same("plan", describe(a_, ta), describe(b_, tb));
    for (size_t s = 0; s < std::max(a_.schedule.table.size(), b_.schedule.table.size()); ++s) {
      const std::string row_a = RowText(a_.schedule, s), row_b = RowText(b_.schedule, s);
      if (row_a != row_b)
        Same(absl::StrCat("stage ", s), row_a.empty() ? "-" : row_a, row_b.empty() ? "-" : row_b);
    }
  }

  void PassNotes() {
    const auto a = NotesByPass(a_), b = NotesByPass(b_);
    Section("passes");
    std::vector<std::string> same;
    for (const std::string& pass : Passes(a_, b_)) {
      const auto ia = a.find(pass), ib = b.find(pass);
      const std::string ta = ia == a.end() ? "(did not run or said nothing)" : ia->second;
      const std::string tb = ib == b.end() ? "(did not run or said nothing)" : ib->second;
      if (ta == tb) {
        same.push_back(pass);
      } else {
        Same(pass, ta, tb);
      }
    }
    if (!same.empty()) absl::StrAppend(&out_, "  same: ", absl::StrJoin(same, ", "), "\n");
  }

  void Nodes() {
    Section("nodes of all stages");
    Columns table("lrrr");
    table.Row({"", "A", "B", "B against A"});
    int64_t counts[2][3] = {};
    for (int side = 0; side < 2; ++side) {
      const Program& p = side == 0 ? a_ : b_;
      for (int s = 0; s < NumStages(p); ++s) {
        const StageView v = ViewStage(p, s);
        counts[side][0] += v.forward_nodes, counts[side][1] += v.backward_nodes,
            counts[side][2] += v.update_nodes;
      }
    }
    static constexpr const char* kNames[] = {"forward", "backward", "update"};
    for (int i = 0; i < 3; ++i) {
      table.Row({kNames[i], CountText(counts[0][i]), CountText(counts[1][i]),
                 Change(static_cast<double>(counts[0][i]), static_cast<double>(counts[1][i]))});
    }
    out_ += table.Text();
  }

  // Bytes that one rank sends in a step, the largest over the stages: the stage that waits longest counts.
  void Collectives() {
    using Key = std::tuple<Phase, std::string, std::string>;
    std::map<Key, std::pair<double, double>> bytes;
    std::map<Key, std::pair<int64_t, int64_t>> nodes;
    for (int side = 0; side < 2; ++side) {
      const Program& p = side == 0 ? a_ : b_;
      for (int s = 0; s < NumStages(p); ++s) {
        std::map<Key, double> of_stage;
        for (const CollectiveTotal& t : TotalCollectives(p, ViewStage(p, s))) {
          const Key key(t.phase, t.kind, t.axes);
          of_stage[key] += t.bytes_per_step();
          (side == 0 ? nodes[key].first : nodes[key].second) += t.nodes;
        }
        for (const cost::BoundarySend& b : cost::BoundariesSentBy(p, s)) {
          const Key key(b.phase, "send", "pp");
          of_stage[key] += b.bytes * static_cast<double>(b.runs);
          ++(side == 0 ? nodes[key].first : nodes[key].second);
        }
        for (const auto& [key, sent] : of_stage) {
          double& most = side == 0 ? bytes[key].first : bytes[key].second;
          most = std::max(most, sent);
        }
      }
    }
    Section("collectives: bytes sent by a rank in a step, on the stage that sends most; nodes of all stages");
    if (bytes.empty()) {
      out_ += "  none\n";
      return;
    }
    Columns table("lllrrrrr");
    table.Row({"", "", "", "A", "B", "B against A", "nodes A", "B"});
    for (const auto& [key, pair] : bytes) {
      const auto& [phase, kind, axes] = key;
      const auto [na, nb] = nodes[key];
      table.Row({std::string(PhaseName(phase)), kind, axes, Bytes(pair.first), Bytes(pair.second),
                 Change(pair.first, pair.second), absl::StrCat(na), absl::StrCat(nb)});
    }
    out_ += table.Text();
  }

  void Memory() {
    std::map<std::string, std::pair<double, double>> shares;
    std::vector<std::string> order;
    double peak[2] = {};
    for (int side = 0; side < 2; ++side) {
      const Program& p = side == 0 ? a_ : b_;
      for (size_t s = 0; s < p.memory.stages.size(); ++s) {
        for (const MemoryShare& m : MemoryShares(p, static_cast<int>(s))) {
          if (shares.count(m.category) == 0) order.push_back(m.category);
          double& most = side == 0 ? shares[m.category].first : shares[m.category].second;
          most = std::max(most, static_cast<double>(m.bytes));
        }
        peak[side] = std::max(peak[side], static_cast<double>(p.memory.stages[s].peak_bytes()));
      }
    }
    if (order.empty()) return;
    Section("memory of a rank, on the stage that needs most of each");
    Columns table("lrrr");
    table.Row({"", "A", "B", "B against A"});
    for (const std::string& category : order) {
      const auto [a, b] = shares[category];
      table.Row({category, Bytes(a), Bytes(b), Change(a, b)});
    }
    table.Row({"peak", Bytes(peak[0]), Bytes(peak[1]), Change(peak[0], peak[1])});
    out_ += table.Text();
  }

  const std::string &name_a_, &name_b_;
  const Program &a_, &b_;
  const cost::Target &target_a_, &target_b_;
  std::string out_;
};

}  // namespace

std::string DiffText(const DiffSide& a, const DiffSide& b) { return Differ(a, b).Text(); }

}  // namespace moe::inspect
