#include "moe/inspect/report.h"

#include <algorithm>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "moe/base/quantities.h"
#include "moe/base/status.h"
#include "moe/cost/node_cost.h"
#include "moe/cost/step_runs.h"
#include "moe/inspect/buffers.h"
#include "moe/inspect/timeline.h"
#include "moe/ir/scope.h"
#include "moe/ir/state.h"

namespace moe::inspect {
namespace {

constexpr size_t kWidth = 100;

// Left text and right text on one line, or just the left where they do not both fit.
std::string Spread(std::string left, absl::string_view right) {
  if (left.size() + 2 + right.size() > kWidth) return absl::StrCat(left, "  ", right);
  return absl::StrCat(left, std::string(kWidth - left.size() - right.size(), ' '), right);
}

std::string OpName(const Node& n) {
  const std::string& op = n.op_name();
  return op.substr(op.find('.') + 1);
}

// Breaks at blanks; continuation lines are indented.
void AppendWrapped(absl::string_view text, size_t indent, std::string* out) {
  std::string line(indent, ' ');
  bool empty = true;
  for (absl::string_view word : absl::StrSplit(text, ' ')) {
    if (!empty && line.size() + 1 + word.size() > kWidth) {
      absl::StrAppend(out, line, "\n");
      line.assign(indent, ' ');
      empty = true;
    }
    absl::StrAppend(&line, empty ? "" : " ", word);
    empty = false;
  }
  absl::StrAppend(out, line, "\n");
}

class NodeLines {
 public:
  NodeLines(const Program& program, const Function& function)
      : program_(program), function_(function), mesh_(program.module->mesh()) {}

  // The nodes of one scope, columns lined up among themselves.
  std::string Text(const std::vector<const Node*>& nodes) const {
    size_t names = 0, types = 0, dims = 0;
    for (const Node* n : nodes) {
      if (IsPlacementChange(*n)) continue;
      for (int i = 0; i < n->num_results(); ++i) {
        names = std::max(names, Name(*n, i).size());
        types = std::max(types, TypeText(n->type(i), mesh_, n->scope).size());
        dims = std::max(dims, DimsText(n->type(i).LocalDims(mesh_)).size());
      }
    }
    // Columns where most lines fit; a longer cell takes from the blanks of the next.
    const size_t type_at = 4 + std::min<size_t>(names, 16),
                 dims_at = type_at + 2 + std::min<size_t>(types, 28),
                 bytes_at = dims_at + 2 + std::min<size_t>(dims, 12);
    std::string out;
    for (const Node* n : nodes) {
      if (IsPlacementChange(*n)) {
        AppendCollective(*n, &out);
        continue;
      }
      for (int i = 0; i < n->num_results(); ++i) {
        std::string line = absl::StrCat("  ", Name(*n, i));
        const std::string bytes = BytesText(ValueBytes(program_, function_, Value{const_cast<Node*>(n), i}));
        Put(TypeText(n->type(i), mesh_, n->scope), type_at, &line);
        Put(DimsText(n->type(i).LocalDims(mesh_)), dims_at, &line);
        Put(bytes, bytes_at + (bytes.size() < 8 ? 8 - bytes.size() : 0), &line);
        if (i == 0) AppendOperation(*n, &line, &out);
        absl::StrAppend(&out, line, "\n");
      }
      AppendReason(*n, &out);
    }
    return out;
  }

 private:
  // At the column, or two blanks behind what is there.
  static void Put(const std::string& text, size_t column, std::string* line) {
    line->append(line->size() + 2 <= column ? column - line->size() : 2, ' ');
    *line += text;
  }
  static std::string Name(const Node& n, int i) {
    return absl::StrCat("%", LocalName(n.result_name(i), n.scope));
  }

  // "dispatch(%tokens, %expert, %slot)" behind the line, or below it where that is too narrow for it.
  void AppendOperation(const Node& n, std::string* line, std::string* out) const {
    std::vector<std::string> operands;
    for (const Value& v : n.operands()) operands.push_back(absl::StrCat("%", LocalName(v.name(), n.scope)));
    const std::string text = absl::StrCat(OpName(n), "(", absl::StrJoin(operands, ", "), ")");
    if (line->size() + 2 + text.size() <= kWidth) {
      absl::StrAppend(line, "  ", text);
    } else if (line->size() + 22 <= kWidth) {
      absl::StrAppend(line, "  ", Shorten(text, kWidth - line->size() - 2));
    } else {
      absl::StrAppend(out, *line, "\n");
      *line = absl::StrCat("      = ", Shorten(text, kWidth - 8));
    }
  }

  void AppendCollective(const Node& n, std::string* out) const {
    const std::string kind = CollectiveKind(n, mesh_), axes = CollectiveAxes(n, mesh_);
    std::string line = absl::StrCat("  ", IsCollective(n) ? ">> " : " > ", kind);
    if (!axes.empty()) absl::StrAppend(&line, n.Has("stages") ? " between " : " over ", axes);
    if (IsCollective(n)) {
      const cost::CommCost cost = cost::CommunicationCost(n, mesh_);
      absl::StrAppend(&line, ", ", BytesText(cost.bytes), " per rank");
      std::vector<std::string> levels;
      for (const CollectiveLevel& l : LevelsOfCollective(n, mesh_)) {
        levels.push_back(absl::StrCat(BytesText(l.cost.bytes), " over ", l.axes, l.where));
      }
      if (!levels.empty()) {
        absl::StrAppend(&line, ": ", absl::StrJoin(levels, ", "));
      } else if (cost.across > 0) {
        absl::StrAppend(&line, " (", BytesText(cost.across), " leave the node)");
      }
    } else {
      absl::StrAppend(&line, ", local");
    }
    const std::string result = absl::StrCat(
        Name(n, 0), "  ", TypeText(n.type(), mesh_, n.scope), "  ", DimsText(n.type().LocalDims(mesh_)), "  ",
        BytesText(ValueBytes(program_, function_, Value{const_cast<Node*>(&n), 0})));
    if (line.size() + 4 + result.size() <= kWidth) {
      absl::StrAppend(out, line, " -> ", result, "\n");
    } else {
      absl::StrAppend(out, line, "\n");
      AppendWrapped("-> " + result, 5, out);
    }
    AppendReason(n, out);
  }

  // Why a node is there that neither the model has nor its gradient.
  void AppendReason(const Node& n, std::string* out) const {
    const Provenance& p = n.provenance;
    if (p.pass.empty() || p.pass == "autodiff" || (p.reason.empty() && !IsPlacementChange(n))) return;
    AppendWrapped(absl::StrCat("inserted by ", p.pass, p.reason.empty() ? "" : ": ", p.reason), 5, out);
  }

  const Program& program_;
  const Function& function_;
  const Mesh& mesh_;
};

std::string MeshLines(const Program& program) {
  const Mesh& mesh = program.module->mesh();
  std::string out =
      absl::StrCat("mesh      ", mesh.num_ranks(), mesh.num_ranks() == 1 ? " rank   " : " ranks   ");
  if (mesh.num_stages() > 1) absl::StrAppend(&out, "pp ", mesh.num_stages(), "   ");
  std::vector<std::string> aliases;
  for (const char* name : {"dp", "cp", "tp"}) {
    if (mesh.aliases().count(name)) aliases.push_back(absl::StrCat(name, " ", mesh.Size(mesh.Alias(name))));
  }
  if (!aliases.empty()) absl::StrAppend(&out, absl::StrJoin(aliases, " x "), "   experts: ");
  aliases.clear();
  for (const char* name : {"edp", "ep", "etp"}) {
    if (mesh.aliases().count(name)) aliases.push_back(absl::StrCat(name, " ", mesh.Size(mesh.Alias(name))));
  }
  absl::StrAppend(&out, absl::StrJoin(aliases, " x "), "\n");
  if (const std::string axes = AxesMeaning(mesh); !axes.empty()) {
    std::string lines;
    AppendWrapped(axes, 10, &lines);
    absl::StrAppend(&out, lines.replace(0, 4, "axes"));
  }
  return out;
}

// "experts   7 in 8 slots of each MoE layer: 0 1 2 3 | 4 5 6 -" per ep part, one line per different map; and
// "words     1009 in 1010 rows".
std::string StoredRowsLines(const Program& program) {
  const Mesh& mesh = program.module->mesh();
  const int64_t ep = mesh.aliases().count("ep") ? mesh.Size(mesh.Alias("ep")) : 1;
  std::map<std::vector<int64_t>, std::vector<std::string>> maps;  // -> layers
  int64_t experts = 0, words = 0, rows = 0;
  for (const auto& s : program.module->states()) {
    if (AttrString(s->attributes, "kind") == "expert_map") {
      experts = AttrInt(s->attributes, "experts");
      maps[std::get<std::vector<int64_t>>(s->attributes.at("slots"))].push_back(
          s->name.substr(0, s->name.rfind('.')));
    } else if (s->attributes.count("logical_rows")) {
      words = AttrInt(s->attributes, "logical_rows"), rows = s->type.dims[0];
    }
  }
  std::string out;
  for (const auto& [map, layers] : maps) {
    std::string text =
        absl::StrCat(experts, " in ", map.size(), " slots",
                     maps.size() > 1 ? absl::StrCat(" of ", absl::StrJoin(layers, ", ")) : "", ":");
    const size_t part = std::max<size_t>(1, map.size() / ep);
    for (size_t i = 0; i < map.size(); ++i) {
      absl::StrAppend(&text, i > 0 && i % part == 0 ? " | " : " ", map[i] < 0 ? "-" : absl::StrCat(map[i]));
    }
    std::string lines;
    AppendWrapped(text, 10, &lines);
    absl::StrAppend(&out, lines.replace(0, 7, "experts"));
  }
  if (words > 0) absl::StrAppend(&out, "words     ", words, " in ", rows, " rows\n");
  return out;
}

}  // namespace

absl::Status CheckReportOptions(const Program& program, const ReportOptions& options) {
  if (options.stage >= 0) RETURN_IF_ERROR(CheckStage(program, options.stage));
  if (!options.function.empty() && program.module->Find(options.function) == nullptr) {
    std::vector<std::string> names;
    for (const auto& f : program.module->functions()) names.push_back(f->name());
    return absl::NotFoundError(absl::StrCat("there is no function @", options.function,
                                            "; the program has: ", absl::StrJoin(names, ", ")));
  }
  if (options.layer >= 0) {
    std::vector<int64_t> layers;
    for (int s = 0; s < NumStages(program); ++s) {
      if (options.stage >= 0 && s != options.stage) continue;
      for (const int64_t l : ViewStage(program, s).layers) layers.push_back(l);
    }
    if (std::find(layers.begin(), layers.end(), options.layer) == layers.end()) {
      return absl::NotFoundError(
          absl::StrCat("there is no layer ", options.layer,
                       options.stage >= 0 ? absl::StrCat(" on stage ", options.stage) : "",
                       layers.empty() ? "; there are none" : "; there are: ", RangesText(layers)));
    }
  }
  return absl::OkStatus();
}

std::string StageHeader(const StageView& view) {
  const std::string ranks = view.first_rank == view.last_rank
                                ? absl::StrCat("rank ", view.first_rank)
                                : absl::StrCat("ranks ", view.first_rank, "-", view.last_rank);
  return Spread(absl::StrCat("stage ", view.stage, " of ", view.stages, "   ", ranks, "   ", view.contents),
                absl::StrCat("forward ", CountText(view.forward_nodes), " nodes   backward ",
                             CountText(view.backward_nodes), "   update ", CountText(view.update_nodes))) +
         "\n";
}

std::string NodesText(const Program& program, const StageView& view, const ReportOptions& options) {
  std::string out;
  for (const StageFunction& f : view.functions) {
    if (!options.function.empty() && f.function->name() != options.function) continue;
    const NodeLines lines(program, *f.function);
    // Runs of equal phase and scope, in order: a scope comes back where the graph leaves and enters it again.
    std::vector<const Node*> run;
    const auto flush = [&] {
      if (run.empty()) return;
      const std::string& scope = run[0]->scope;
      absl::StrAppend(&out, "\n",
                      Spread(scope.empty() ? absl::StrCat("@", f.function->name()) : scope,
                             absl::StrCat("@", f.function->name(), ", ", PhaseName(run[0]->phase), ", ",
                                          run.size(), run.size() == 1 ? " node" : " nodes")),
                      "\n", lines.Text(run));
      run.clear();
    };
    for (const auto& n : f.function->body()) {
      if (options.layer >= 0 && ParseScope(n->scope).layer != options.layer) continue;
      if (!run.empty() && (run[0]->scope != n->scope || run[0]->phase != n->phase)) flush();
      run.push_back(n.get());
    }
    flush();
  }
  return out;
}

std::string CollectivesText(const Program& program, const StageView& view) {
  const std::vector<CollectiveTotal> totals = TotalCollectives(program, view);
  const std::vector<cost::BoundarySend> sends = cost::BoundariesSentBy(program, view.stage);
  if (totals.empty() && sends.empty()) return "collectives   none\n";
  const bool nodes = std::any_of(totals.begin(), totals.end(), [](const auto& t) { return t.across > 0; });
  Columns table("lllrrrr");
  table.Row({"", "", "", "nodes", "each run", "each step", nodes ? "of it leaves the node" : ""});
  double total = 0;
  for (const CollectiveTotal& t : totals) {
    table.Row({std::string(PhaseName(t.phase)), t.kind, t.axes, absl::StrCat(t.nodes), BytesText(t.bytes),
               BytesText(t.bytes_per_step()), t.across > 0 ? BytesText(t.across_per_step()) : ""});
    total += t.bytes_per_step();
  }
  for (const cost::BoundarySend& s : sends) {
    const double per_step = s.bytes * static_cast<double>(s.runs);
    table.Row({std::string(PhaseName(s.phase)), absl::StrCat("send ", s.name),
               absl::StrCat("to stage ", s.to_stage), "", BytesText(s.bytes), BytesText(per_step)});
    total += per_step;
  }
  return absl::StrCat(Spread("collectives", absl::StrCat("sent by each rank: ", BytesText(total), " a step")),
                      "\n", table.Text(),
                      "  (bytes of all these nodes together; a run is one microbatch, or the update)\n");
}

absl::StatusOr<std::string> ReportText(const Program& program, const ReportOptions& options) {
  RETURN_IF_ERROR(CheckReportOptions(program, options));
  const bool filtered = options.layer >= 0 || !options.function.empty();
  std::string out =
      absl::StrCat("program   ", program.module->name(), "\n", MeshLines(program), StoredRowsLines(program));
  if (!program.schedule.name.empty()) {
    absl::StrAppend(&out, "schedule  ", program.schedule.name, ", ", program.schedule.microbatches,
                    program.schedule.microbatches == 1 ? " microbatch" : " microbatches", "\n");
  }
  if (!filtered && options.stage < 0) {
    if (const std::string timeline = TimelineText(EstimatedTimeline(program, options.target));
        !timeline.empty()) {
      absl::StrAppend(&out, "\n", timeline);
    }
  }
  for (int s = 0; s < NumStages(program); ++s) {
    if (options.stage >= 0 && s != options.stage) continue;
    const StageView view = ViewStage(program, s);
    if (!options.function.empty() &&
        std::none_of(view.functions.begin(), view.functions.end(),
                     [&](const StageFunction& f) { return f.function->name() == options.function; })) {
      continue;
    }
    if (options.layer >= 0 &&
        std::find(view.layers.begin(), view.layers.end(), options.layer) == view.layers.end()) {
      continue;
    }
    absl::StrAppend(&out, "\n", StageHeader(view));
    if (filtered || options.nodes || options.stage >= 0) {
      absl::StrAppend(&out, NodesText(program, view, options), "\n");
    }
    if (filtered) continue;
    out += CollectivesText(program, view);
    if (const std::string memory = MemoryText(program, s); !memory.empty()) out += memory;
  }
  return out;
}

}  // namespace moe::inspect
