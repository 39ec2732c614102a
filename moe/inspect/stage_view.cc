#include "moe/inspect/stage_view.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "moe/base/quantities.h"
#include "moe/cost/node_cost.h"
#include "moe/cost/step_runs.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/registry.h"
#include "moe/ir/scope.h"
#include "moe/ir/state.h"

namespace moe::inspect {
namespace {

int StageOfChunk(const Program& program, int chunk) {
  const std::vector<int>& stages = program.schedule.chunk_stage;
  return chunk >= 0 && chunk < static_cast<int>(stages.size()) ? stages[chunk] : 0;
}

}  // namespace

int NumStages(const Program& program) {
  int64_t stages = 1;
  for (const int s : program.schedule.chunk_stage) stages = std::max<int64_t>(stages, s + 1);
  return static_cast<int>(std::max({stages, static_cast<int64_t>(program.schedule.table.size()),
                                    static_cast<int64_t>(program.memory.stages.size())}));
}

FunctionPlace PlaceOf(const Program& program, FunctionRole role) {
  FunctionPlace place;
  if (role.index < 0) return place;
  if (role.kind == FunctionKind::kUpdate || role.kind == FunctionKind::kReport) {
    place.stage = role.index;
  } else {
    place.chunk = role.index;
    place.stage = StageOfChunk(program, role.index);
  }
  return place;
}

StageView ViewStage(const Program& program, int stage) {
  StageView view;
  view.stage = stage;
  view.stages = NumStages(program);
  const Module& module = *program.module;
  const int64_t ranks = module.mesh().ranks_per_stage();
  view.first_rank = stage * ranks;
  view.last_rank = view.first_rank + ranks - 1;
  bool embedding = false, head = false;
  std::set<int64_t> layers;
  for (const std::unique_ptr<Function>& f : module.functions()) {
    const FunctionPlace place = PlaceOf(program, f->role());
    if (place.stage != stage) continue;
    view.functions.push_back({f.get(), place.chunk});
    for (const auto& n : f->body()) {
      ++(n->phase == Phase::kForward    ? view.forward_nodes
         : n->phase == Phase::kBackward ? view.backward_nodes
                                        : view.update_nodes);
      if (n->phase == Phase::kUpdate) continue;
      const Scope scope = ParseScope(n->scope);
      embedding |= scope.kind == Scope::kEmbedding;
      head |= scope.kind == Scope::kHead;
      if (scope.kind == Scope::kLayer) layers.insert(scope.layer);
    }
  }
  // Forwards, backwards, then what a step does once: the order of the kinds.
  std::stable_sort(
      view.functions.begin(), view.functions.end(),
      [](const StageFunction& a, const StageFunction& b) { return a.function->role() < b.function->role(); });
  view.layers.assign(layers.begin(), layers.end());
  std::vector<std::string> contents;
  if (embedding) contents.push_back("embedding");
  if (!layers.empty()) {
    contents.push_back(absl::StrCat(layers.size() == 1 ? "layer " : "layers ", RangesText(view.layers)));
  }
  if (head) contents.push_back("head");
  view.contents = absl::StrJoin(contents, ", ");
  return view;
}

bool IsPlacementChange(const Node& node) { return absl::StartsWith(node.op_name(), "comm."); }

bool IsCollective(const Node& node) { return node.op().Has(kCollective); }

std::string CollectiveKind(const Node& node, const Mesh& mesh) {
  const std::string wire = node.Has("wire") ? absl::StrCat(" in ", node.String("wire")) : "";
  const bool named = ConvertsOne(node) && !node.Is("comm.reshard");
  if (!named && HasConversionParts(node)) {
    if (const auto parts = ConversionParts(node, mesh); parts.ok() && !parts->empty()) {
      std::vector<std::string> kinds;
      for (const ConversionStep& s : parts->front().steps) {
        if (!IsLocal(s.kind)) kinds.emplace_back(StepKindName(s.kind));
      }
      if (!kinds.empty()) return absl::StrCat(absl::StrJoin(kinds, "+"), wire);
    }
  }
  return absl::StrCat(absl::StripPrefix(node.op_name(), "comm."), wire);
}

namespace {

std::string NameAxes(absl::Span<const AxisId> axes, const Mesh& mesh, bool experts) {
  static constexpr const char* kAttention[] = {"tp", "dp", "cp", "kvh", "ep", "etp", "edp"};
  static constexpr const char* kExperts[] = {"ep", "etp", "edp", "tp", "dp", "cp", "kvh"};
  // The longest alias that the axes begin with, then the rest; aliases are written major first.
  std::vector<std::string> parts;
  while (!axes.empty()) {
    std::string best = mesh.name(axes[0]);
    size_t length = 1;
    bool named = false;
    for (const char* name : experts ? kExperts : kAttention) {
      const AxisList alias = mesh.Alias(name);
      if (alias.empty() || alias.size() > axes.size() || (named && alias.size() <= length)) continue;
      if (!std::equal(alias.begin(), alias.end(), axes.begin())) continue;
      best = name, length = alias.size(), named = true;
    }
    parts.push_back(best);
    axes.remove_prefix(length);
  }
  return absl::StrJoin(parts, ".");
}

bool IsMoeScope(absl::string_view scope) { return absl::StartsWith(ParseScope(scope).part, "moe"); }

}  // namespace

std::string AxesText(absl::Span<const AxisId> axes, const Mesh& mesh, absl::string_view scope) {
  return NameAxes(axes, mesh, IsMoeScope(scope));
}

std::string AxesMeaning(const Mesh& mesh) {
  const auto aliases = [&](const AxisList& axes) {
    std::vector<std::string> names;
    for (const char* name : {"dp", "cp", "tp", "edp", "ep", "etp", "kvh"}) {
      if (mesh.Alias(name) == axes) names.push_back(name);
    }
    return absl::StrJoin(names, ", ");
  };
  std::vector<std::string> parts;
  for (const AxisId axis : mesh.SpmdAxes()) {
    const std::string names = aliases({axis});
    parts.push_back(
        absl::StrCat(mesh.name(axis), " of ", mesh.size(axis), names.empty() ? "" : " is ", names));
  }
  std::set<AxisList> said;
  for (const auto& [name, axes] : mesh.aliases()) {
    if (axes.size() < 2 || aliases(axes).empty() || !said.insert(axes).second) continue;
    const auto one = [&](std::string* out, AxisId axis) { *out += mesh.name(axis); };
    parts.push_back(absl::StrCat(aliases(axes), " is ", absl::StrJoin(axes, ".", one)));
  }
  return absl::StrJoin(parts, "; ");
}

std::string TypeText(const Type& type, const Mesh& mesh, absl::string_view scope) {
  const bool moe = IsMoeScope(scope);
  std::string out = absl::StrCat(DTypeName(type.dtype), "[");
  for (int d = 0; d < type.rank(); ++d) {
    // Dispatched tokens are [expert, batch, group, slot, hidden]; all others belong to attention's factors.
    const bool experts = moe && type.rank() == 5 && (d == 0 || d == 4);
    absl::StrAppend(&out, d ? "," : "", d == type.ragged ? "~" : "", type.dims[d]);
    if (d == type.ragged) absl::StrAppend(&out, "<=", type.ragged_bound);
    if (!type.placement.dims[d].empty())
      absl::StrAppend(&out, "@", NameAxes(type.placement.dims[d], mesh, experts));
  }
  out += "]";
  AxisList sum, max;
  for (const Partial& p : type.placement.partial) (p.kind == Reduction::kSum ? sum : max).push_back(p.axis);
  if (!sum.empty()) absl::StrAppend(&out, " partial(", NameAxes(sum, mesh, moe), ")");
  if (!max.empty()) absl::StrAppend(&out, " partial(max:", NameAxes(max, mesh, moe), ")");
  return out;
}

std::string CollectiveAxes(const Node& node, const Mesh& mesh) {
  if (node.Has("stages")) return absl::StrCat("stages ", absl::StrJoin(node.Ints("stages"), ","));
  return node.Has("axes") ? AxesText(node.axes(), mesh, node.scope) : "";
}

std::vector<CollectiveLevel> LevelsOfCollective(const Node& node, const Mesh& mesh) {
  std::vector<CollectiveLevel> out;
  if (!ConvertsOne(node) || node.Is("comm.reshard")) return out;
  const absl::StatusOr<std::vector<ConversionPart>> parts = ConversionParts(node, mesh);
  if (!parts.ok() || parts->front().steps.size() < 2) return out;
  const Type& type = node.operand(0).type();
  double bytes = static_cast<double>(type.LocalElements(mesh)) * ByteSize(type.dtype);
  for (const ConversionStep& step : parts->front().steps) {
    const cost::StepCost c = cost::CostOfStep(step, bytes, mesh, cost::Target());
    out.push_back(
        {AxesText(step.axes(), mesh, node.scope), c.sent.across > 0 ? " across nodes" : " in nodes", c.sent});
    bytes = c.bytes_after;
  }
  // In the format that travels.
  double values = 0;
  for (const CollectiveLevel& level : out) values += level.cost.bytes;
  const double scale = values > 0 ? cost::CommunicationCost(node, mesh).bytes / values : 1;
  for (CollectiveLevel& level : out) level.cost.bytes *= scale, level.cost.across *= scale;
  return out;
}

std::vector<CollectiveUse> CollectivesOf(const Program& program, const StageView& view) {
  const Mesh& mesh = program.module->mesh();
  const cost::StepRuns runs(program);
  std::vector<CollectiveUse> out;
  for (const StageFunction& f : view.functions) {
    for (const auto& n : f.function->body()) {
      if (!IsCollective(*n)) continue;
      const std::string kind = CollectiveKind(*n, mesh);
      const std::vector<CollectiveLevel> levels = LevelsOfCollective(*n, mesh);
      for (const CollectiveLevel& level : levels) {
        out.push_back({n.get(), f.function, n->phase, absl::StrCat(kind, level.where), level.axes,
                       level.cost.bytes, level.cost.across, runs.Of(*n)});
      }
      if (!levels.empty()) continue;
      const cost::CommCost cost = cost::CommunicationCost(*n, mesh);
      out.push_back({n.get(), f.function, n->phase, kind, CollectiveAxes(*n, mesh), cost.bytes, cost.across,
                     runs.Of(*n)});
    }
  }
  return out;
}

std::vector<CollectiveTotal> TotalCollectives(const Program& program, const StageView& view) {
  std::vector<CollectiveTotal> totals;
  for (const CollectiveUse& use : CollectivesOf(program, view)) {
    auto it = std::find_if(totals.begin(), totals.end(), [&](const CollectiveTotal& t) {
      return t.phase == use.phase && t.kind == use.kind && t.axes == use.axes && t.runs == use.runs;
    });
    if (it == totals.end()) it = totals.insert(totals.end(), {use.phase, use.kind, use.axes, use.runs});
    ++it->nodes;
    it->bytes += use.bytes;
    it->across += use.across;
  }
  std::stable_sort(totals.begin(), totals.end(), [](const CollectiveTotal& a, const CollectiveTotal& b) {
    return std::tie(a.phase, a.kind, a.axes, a.runs) < std::tie(b.phase, b.kind, b.axes, b.runs);
  });
  return totals;
}

int64_t ValueBytes(const Program& program, const Function& function, const Value& value) {
  const LocalStorage storage = StorageOf(value.type(), program.module->mesh());
  if (value.type().ragged < 0) return storage.bytes;
  // How many rows of a ragged value have room is the memory plan's decision.
  if (auto f = program.memory.functions.find(function.name()); f != program.memory.functions.end()) {
    if (auto v = f->second.values.find(value.name()); v != f->second.values.end()) return v->second.bytes;
  }
  return storage.bytes;
}

std::string LocalName(absl::string_view name, absl::string_view scope) {
  const std::string prefix = absl::StrCat(scope, ".");
  const size_t at = scope.empty() ? absl::string_view::npos : name.find(prefix);
  if (at == absl::string_view::npos || (at > 0 && name[at - 1] != '.')) return std::string(name);
  return absl::StrCat(name.substr(0, at), name.substr(at + prefix.size()));
}

absl::Status CheckStage(const Program& program, int stage) {
  const int stages = NumStages(program);
  if (stage >= 0 && stage < stages) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("there is no stage ", stage, "; the program has ", stages,
                   stages == 1 ? " stage: 0" : absl::StrCat(" stages: 0 to ", stages - 1)));
}

}  // namespace moe::inspect
