#include "moe/inspect/timeline.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/cost/node_cost.h"
#include "moe/inspect/quantities.h"
#include "moe/inspect/stage_view.h"

namespace moe::inspect {
namespace {

TimelineSpan::Kind KindOf(Action::Kind kind) {
  switch (kind) {
    case Action::kForward:
      return TimelineSpan::kForward;
    case Action::kBackward:
      return TimelineSpan::kBackward;
    case Action::kInputGrad:
      return TimelineSpan::kInputGrad;
    case Action::kWeightGrad:
      return TimelineSpan::kWeightGrad;
    case Action::kSend:
    case Action::kRecv:
      return TimelineSpan::kTransfer;
    case Action::kUpdate:
      return TimelineSpan::kUpdate;
    case Action::kReset:
    case Action::kReport:
      return TimelineSpan::kOther;
  }
  return TimelineSpan::kOther;
}

// The table's cells as actions, where `schedule` has not resolved them yet.
std::vector<std::vector<Action>> ActionsOfTable(const Schedule& schedule) {
  std::vector<std::vector<Action>> rows;
  for (const std::vector<Schedule::Cell>& row : schedule.table) {
    std::vector<Action> actions;
    for (const Schedule::Cell& c : row) {
      Action a;
      a.kind = c.kind == 'F'   ? Action::kForward
               : c.kind == 'B' ? Action::kBackward
               : c.kind == 'I' ? Action::kInputGrad
                               : Action::kWeightGrad;
      a.chunk = c.chunk;
      a.microbatch = c.microbatch;
      actions.push_back(std::move(a));
    }
    rows.push_back(std::move(actions));
  }
  return rows;
}

class Player {
 public:
  Player(const Program& program, const Durations& durations, std::vector<std::vector<Action>> actions)
      : schedule_(program.schedule), durations_(durations), actions_(std::move(actions)) {
    for (const auto& row : actions_) {
      for (const Action& a : row) {
        transfers_ |= a.kind == Action::kRecv;
      }
    }
    stage_reduces_ = false;
    for (const auto& f : program.module->functions()) {
      if (f->role().kind == FunctionKind::kUpdate) stage_reduces_ |= !f->NodesOf("comm.stage_reduce").empty();
    }
  }

  std::vector<std::vector<TimelineSpan>> Play() {
    const size_t rows = actions_.size();
    next_.assign(rows, 0), clock_.assign(rows, 0), spans_.assign(rows, {});
    for (bool progress = true; progress;) {
      progress = false;
      for (size_t s = 0; s < rows; ++s) {
        while (next_[s] < actions_[s].size() && Step(static_cast<int>(s))) progress = true;
      }
    }
    return std::move(spans_);
  }

 private:
  using Message = std::tuple<std::string, int, int>;  // boundary, microbatch, receiving stage
  using Done = std::tuple<char, int, int>;            // 'F' or 'B', chunk, microbatch

  bool Step(int s) {
    const Action& a = actions_[s][next_[s]];
    double start = clock_[s], end = start;
    switch (a.kind) {
      case Action::kSend:
        arrival_[{a.boundary, a.microbatch, a.peer_stage}] = {start, start + durations_.transfer(a, s)};
        ++next_[s];
        return true;
      case Action::kRecv: {
        auto it = arrival_.find({a.boundary, a.microbatch, s});
        if (it == arrival_.end()) return false;
        // The transfer shows where it happens, not where the receiver waits for it: that is idle time.
        const auto [sent, arrived] = it->second;
        if (arrived > sent) {
          spans_[s].push_back(
              {TimelineSpan::kTransfer, a.chunk, a.microbatch, sent, arrived, ActionToString(a)});
        }
        clock_[s] = std::max(start, arrived);
        ++next_[s];
        return true;
      }
      case Action::kUpdate:
        if (stage_reduces_) {
          for (size_t t = 0; t < actions_.size(); ++t) {
            if (next_[t] >= actions_[t].size()) continue;
            if (actions_[t][next_[t]].kind != Action::kUpdate) return false;
            start = std::max(start, clock_[t]);
          }
          stage_reduces_ = false;  // the others start now too
          for (size_t t = 0; t < actions_.size(); ++t) {
            if (next_[t] < actions_[t].size()) clock_[t] = start;
          }
        }
        end = start + durations_.action(a, s);
        break;
      default: {
        if (!transfers_ && !Ready(a, s, &start)) return false;
        end = start + durations_.action(a, s);
        if (a.kind == Action::kForward) done_[{'F', a.chunk, a.microbatch}] = {end, s};
        if (a.kind == Action::kBackward || a.kind == Action::kInputGrad) {
          done_[{'B', a.chunk, a.microbatch}] = {end, s};
        }
      }
    }
    clock_[s] = end;
    ++next_[s];
    if (end > start)
      spans_[s].push_back({KindOf(a.kind), a.chunk, a.microbatch, start, end, ActionToString(a)});
    return true;
  }

  // Without transfers among the actions: the table's own rules. False while something is missing.
  bool Ready(const Action& a, int s, double* start) const {
    const auto after = [&](char kind, int chunk) {
      auto it = done_.find({kind, chunk, a.microbatch});
      if (it == done_.end()) return false;
      const auto [end, stage] = it->second;
      *start = std::max(*start, end + (stage == s ? 0 : durations_.transfer(a, s)));
      return true;
    };
    switch (a.kind) {
      case Action::kForward:
        return schedule_.IsFirst(a.chunk) || after('F', a.chunk - 1);
      case Action::kBackward:
      case Action::kInputGrad:
        return after('F', a.chunk) && (schedule_.IsLast(a.chunk) || after('B', a.chunk + 1));
      case Action::kWeightGrad:
        return after('B', a.chunk);
      default:
        return true;
    }
  }

  const Schedule& schedule_;
  const Durations& durations_;
  const std::vector<std::vector<Action>> actions_;
  bool transfers_ = false, stage_reduces_ = false;
  std::vector<size_t> next_;
  std::vector<double> clock_;
  std::map<Message, std::pair<double, double>> arrival_;  // sent, arrived
  std::map<Done, std::pair<double, int>> done_;
  std::vector<std::vector<TimelineSpan>> spans_;
};

bool IsPipelineWork(const TimelineSpan& s) { return s.kind <= TimelineSpan::kWeightGrad; }

std::string Label(const TimelineSpan& s, bool chunks) {
  static constexpr char kLetters[] = "FBIW";
  if (s.kind == TimelineSpan::kUpdate) return "update";
  if (!IsPipelineWork(s)) return "";
  return chunks ? absl::StrFormat("%c%d.%d", kLetters[s.kind], s.chunk, s.microbatch)
                : absl::StrFormat("%c%d", kLetters[s.kind], s.microbatch);
}

}  // namespace

Durations UnitDurations() {
  Durations d;
  d.action = [](const Action& a, int) -> double {
    switch (a.kind) {
      case Action::kBackward:
        return 2;
      case Action::kForward:
      case Action::kInputGrad:
      case Action::kWeightGrad:
      case Action::kUpdate:
        return 1;
      default:
        return 0;
    }
  };
  d.transfer = [](const Action&, int) { return 0.0; };
  return d;
}

Durations CostDurations(const Program& program, const cost::Target& target) {
  const Mesh& mesh = program.module->mesh();
  std::map<FunctionRole, double> seconds;
  for (const auto& f : program.module->functions()) {
    double sum = 0;
    for (const auto& n : f->body()) sum += cost::NodeSeconds(*n, mesh, target);
    seconds[f->role()] = sum;
  }
  std::map<std::string, double> boundary;
  for (int s = 0; s < NumStages(program); ++s) {
    for (const BoundarySend& b : BoundariesSentBy(program, ViewStage(program, s))) boundary[b.name] = b.bytes;
  }
  Durations d;
  d.action = [seconds](const Action& a, int stage) {
    const FunctionRole role = RoleOf(a, stage);
    const auto it = seconds.find(role);
    return role.kind == FunctionKind::kOther || it == seconds.end() ? 0 : it->second;
  };
  const cost::Link link = cost::LinkOf(mesh.Alias("pp"), mesh, target);
  d.transfer = [boundary, link](const Action& a, int) {
    auto it = boundary.find(a.boundary);
    return link.Seconds(1, it == boundary.end() ? 0 : it->second);
  };
  d.source = absl::StrCat("planned: costs of target ", target.name);
  d.seconds = true;
  return d;
}

Timeline PlanTimeline(const Program& program, const Durations& durations, const std::string& name) {
  Timeline t;
  const Schedule& schedule = program.schedule;
  auto resolved = schedule.actions.find(name);
  std::vector<std::vector<Action>> actions =
      resolved != schedule.actions.end() ? resolved->second : ActionsOfTable(schedule);
  t.title = absl::StrCat(schedule.name, ", ", schedule.microbatches,
                         schedule.microbatches == 1 ? " microbatch on " : " microbatches on ", actions.size(),
                         actions.size() == 1 ? " stage" : " stages");
  t.source = durations.source;
  t.seconds = durations.seconds;
  t.many_chunks = schedule.chunk_stage.size() > actions.size();
  for (size_t s = 0; s < actions.size(); ++s) t.rows.push_back(absl::StrCat("stage ", s));
  t.spans = Player(program, durations, std::move(actions)).Play();
  Measure(&t);
  return t;
}

void Measure(Timeline* t) {
  double busy = 0;
  constexpr double kInf = std::numeric_limits<double>::infinity();
  t->begin = t->pipeline_begin = kInf, t->end = t->pipeline_end = -kInf;
  for (std::vector<TimelineSpan>& row : t->spans) {
    std::stable_sort(row.begin(), row.end(),
                     [](const TimelineSpan& a, const TimelineSpan& b) { return a.begin < b.begin; });
    for (const TimelineSpan& s : row) {
      t->begin = std::min(t->begin, s.begin), t->end = std::max(t->end, s.end);
      if (!IsPipelineWork(s)) continue;
      t->pipeline_begin = std::min(t->pipeline_begin, s.begin);
      t->pipeline_end = std::max(t->pipeline_end, s.end);
      busy += s.end - s.begin;
    }
  }
  if (t->begin == kInf) t->begin = t->end = 0;
  if (t->pipeline_begin == kInf) t->pipeline_begin = t->pipeline_end = t->begin;
  const double span = (t->pipeline_end - t->pipeline_begin) * static_cast<double>(t->spans.size());
  t->bubble = span > 0 ? std::max(0.0, 1 - busy / span) : 0;
}

std::string TimelineText(const Timeline& t) {
  if (t.end <= t.begin) return "";
  size_t head = 0;
  for (const std::string& r : t.rows) head = std::max(head, r.size());
  // Columns per unit of time: enough that the shortest cell shows its label, as long as the whole fits. Where
  // chunk and microbatch do not fit into the cells, the microbatch alone has to do.
  const double room = (100 - 4 - static_cast<double>(head)) / (t.end - t.begin);
  bool chunks = t.many_chunks, split = false;
  const auto needed = [&] {
    double need = 0;
    for (const auto& row : t.spans) {
      for (const TimelineSpan& s : row) {
        if (!IsPipelineWork(s) || s.end <= s.begin) continue;
        need = std::max(need, static_cast<double>(Label(s, chunks).size() + 1) / (s.end - s.begin));
        split |= s.kind == TimelineSpan::kInputGrad || s.kind == TimelineSpan::kWeightGrad;
      }
    }
    return need;
  };
  if (chunks && needed() > room) chunks = false;
  const double scale = std::min(std::max(needed(), 24 / (t.end - t.begin)), room);
  const auto column = [&](double x) { return static_cast<size_t>(std::lround((x - t.begin) * scale)); };

  std::string out =
      absl::StrCat("timeline  ", t.title, "   bubble ", ShareText(t.bubble), "   (", t.source, ")\n");
  for (size_t r = 0; r < t.spans.size(); ++r) {
    std::string line(column(t.end), ' ');
    for (size_t i = column(t.pipeline_begin); i < column(t.pipeline_end); ++i) line[i] = '.';
    for (const TimelineSpan& s : t.spans[r]) {
      const size_t from = column(s.begin), to = std::max(column(s.end), from);
      if (s.kind >= TimelineSpan::kOther || from == to) continue;
      // A cell ends in a bar where there is room, so that equal neighbours stay apart.
      std::string cell = Label(s, chunks);
      static constexpr char kFill[] = "-=~+#";
      if (cell.size() + 1 > to - from) cell = cell.substr(0, to - from > 1 ? to - from - 1 : 1);
      cell.resize(to - from, kFill[std::min<int>(s.kind, 4)]);
      if (to - from > 1) cell.back() = '|';
      line.replace(from, to - from, cell);
    }
    absl::StrAppend(&out, "  ", t.rows[r], std::string(head - t.rows[r].size(), ' '), "  ", line, "\n");
  }
  absl::StrAppend(&out, "  F forward, B backward", split ? ", I input and W weight gradient" : "",
                  chunks ? ", chunk.microbatch" : " of the microbatch", "; . idle; one step takes ",
                  t.seconds ? SecondsText(t.end - t.begin) : absl::StrCat(t.end - t.begin, " units"), "\n");
  return out;
}

}  // namespace moe::inspect
