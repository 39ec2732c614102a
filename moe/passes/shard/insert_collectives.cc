#include "moe/passes/shard/insert_collectives.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/cost/node_cost.h"
#include "moe/ir/builder.h"
#include "moe/ir/conversion_parts.h"
#include "moe/passes/shard/conversion.h"
#include "moe/passes/shard/shard_graph.h"

namespace moe::passes {
namespace {

// How many collectives leave a node, and how many of them do it in two levels.
struct LevelCounts {
  int across = 0, in_two = 0;
};

class Lowering {
 public:
  Lowering(Function* f, ConversionPlanner* planner, const PassContext& context, LevelCounts* levels)
      : f_(f), planner_(*planner), context_(context), levels_(*levels) {}

  absl::StatusOr<bool> Run() {
    const std::vector<Node*> converts = f_->NodesOf("comm.convert");
    for (Node* n : converts) RETURN_IF_ERROR(Lower(n));
    return !converts.empty();
  }

 private:
  struct Variant {
    PlacementId placement;
    Value value;
    Phase phase;
  };

  Value RootOf(Value v) const {
    const auto it = root_.find(v);
    return it == root_.end() ? v : it->second;
  }

  absl::Status Lower(Node* n) {
    const Value x = n->operand(0), root = RootOf(x);
    const Type type = n->type();
    const PlacementId to = planner_.Intern(type.placement);
    const double bytes = ConversionPlanner::GlobalBytes(type);
    // The nearest placement that the value has: that of the operand, or one made in this phase.
    Value from = x;
    double cost = planner_.Cost(planner_.Intern(x.type().placement), to, bytes);
    for (const Variant& v : variants_[root]) {
      if (v.phase != n->phase) continue;
      const double c = planner_.Cost(v.placement, to, bytes);
      if (c < cost) cost = c, from = v.value;
    }
    const Conversion& conversion = planner_.Plan(planner_.Intern(from.type().placement), to);
    if (!conversion.legal) {
      return absl::InvalidArgumentError(
          absl::StrCat("%", n->result_name(), " of @", f_->name(), ": no conversion leads from ",
                       PlacementToString(x.type().placement, planner_.mesh()), " to ",
                       PlacementToString(type.placement, planner_.mesh()),
                       "; a shard cannot become a partial, nor a maximum a sum"));
    }
    Value y = from;
    bool made = false;
    for (const ConversionPhase& phase : conversion.phases) {
      for (const ConversionPhase& level : Levels(phase, type)) {
        ASSIGN_OR_RETURN(y, Step(n, root, y, level, &made));
      }
    }
    const std::string name = n->result_name();
    f_->ReplaceAllUses(n->result(), y);
    f_->Erase(n);
    if (made) y.node->SetResultName(0, name);
    return absl::OkStatus();
  }

  // The phase with its collectives across nodes in two levels where that is cheaper (or wanted): first what
  // makes the part that leaves the node small. Steps of one kind follow each other within a phase, on the
  // refined view; a two-level all_reduce is a reduce_scatter inside, an all_reduce across and an all_gather
  // inside, each to a placement of its own.
  std::vector<ConversionPhase> Levels(const ConversionPhase& phase, const Type& type) {
    const Mesh& mesh = planner_.mesh();
    const strategy::Toggle wanted = context_.strategy.hierarchical;
    Type local = type;
    local.placement = phase.from;
    double bytes = static_cast<double>(local.LocalElements(mesh)) * ByteSize(type.dtype);
    std::vector<ConversionPhase> out = {{phase.from, phase.to, {}}};
    for (const ConversionStep& step : phase.steps) {
      const cost::StepCost flat = cost::CostOfStep(step, bytes, mesh, context_.target);
      const bool crosses = !IsLocal(step.kind) && !cost::LevelsOf(step.axes(), mesh).across.empty();
      levels_.across += crosses;
      std::vector<ConversionPhase> two;
      if (crosses && wanted != strategy::Toggle::kOff) two = TwoLevels(step, phase, type);
      if (!two.empty() && wanted == strategy::Toggle::kAuto) {
        std::vector<ConversionStep> steps;
        for (const ConversionPhase& p : two) steps.insert(steps.end(), p.steps.begin(), p.steps.end());
        if (cost::CostOfSteps(steps, bytes, mesh, context_.target).seconds >= flat.seconds) two.clear();
      }
      if (two.empty()) {
        out.back().steps.push_back(step);
      } else if (two.size() == 1) {
        out.back().steps.insert(out.back().steps.end(), two[0].steps.begin(), two[0].steps.end());
        ++levels_.in_two;
      } else {
        out = two;  // the only step of its phase
        ++levels_.in_two;
      }
      bytes = flat.bytes_after;
    }
    return out;
  }

  // None if there are no two levels for this step.
  std::vector<ConversionPhase> TwoLevels(const ConversionStep& step, const ConversionPhase& phase,
                                         const Type& type) const {
    const Mesh& mesh = planner_.mesh();
    const std::vector<ConversionStep> levels = cost::InTwoLevels(step, 0, mesh);
    if (levels.empty()) return {};
    if (step.kind != StepKind::kAllReduce) return {{phase.from, phase.to, levels}};
    if (phase.steps.size() != 1) return {};
    Type local = type;
    local.placement = phase.from;
    const Dims dims = local.LocalDims(mesh);
    for (int d = 0; d < type.rank(); ++d) {
      if (d == type.ragged || dims[d] % mesh.Size(levels[0].axes()) != 0) continue;
      const std::vector<ConversionStep> steps = cost::InTwoLevels(step, d, mesh);
      Placement scattered = phase.from, reduced = phase.to;
      for (const Move& m : steps[0].moves) {
        scattered.partial.erase(std::remove_if(scattered.partial.begin(), scattered.partial.end(),
                                               [&](const Partial& p) { return p.axis == m.axis; }),
                                scattered.partial.end());
        scattered.dims[d].push_back(m.axis);
        reduced.dims[d].push_back(m.axis);
      }
      return {{phase.from, scattered, {steps[0]}},
              {scattered, reduced, {steps[1]}},
              {reduced, phase.to, {steps[2]}}};
    }
    return {};
  }

  // One node per phase, or the value that has the placement already. `made`: whether it is new.
  absl::StatusOr<Value> Step(Node* n, Value root, Value from, const ConversionPhase& phase, bool* made) {
    const PlacementId to = planner_.Intern(phase.to);
    *made = false;
    for (const Variant& v : variants_[root]) {
      if (v.phase == n->phase && v.placement == to) return v.value;
    }
    bool local = true, alike = true;
    for (const ConversionStep& step : phase.steps) {
      local &= IsLocal(step.kind);
      alike &= step.kind == phase.steps[0].kind;
    }
    const std::string op = alike ? absl::StrCat("comm.", StepKindName(phase.steps[0].kind)) : "comm.reshard";
    Type type = n->type();
    type.placement = phase.to;
    Builder b = Builder::Before(n);
    b.provenance = {"insert-collectives", n->provenance.reason};
    if (b.provenance.reason.empty()) {
      b.provenance.reason = absl::StrCat(
          DescribeConversion(phase.from, phase.to, planner_.mesh(), DimNames(root)), ", for %", root.name());
    }
    ASSIGN_OR_RETURN(
        Node * node,
        b.CreateTyped(op, {from}, ConversionAttributes(phase.from, phase.to, phase.steps, planner_.mesh()),
                      {std::move(type)}, root.name()));
    if (!local) node->queue = Queue::kComm;
    *made = true;
    root_[node->result()] = root;
    variants_[root].push_back({to, node->result(), n->phase});
    return node->result();
  }

  Function* const f_;
  ConversionPlanner& planner_;
  const PassContext& context_;
  LevelCounts& levels_;
  std::map<Value, Value> root_;
  std::map<Value, std::vector<Variant>> variants_;
};

// "all_to_all 16 (ep)  all_reduce 24 (tp) 9 (dp)  reduce_scatter 0  all_gather 0"
absl::StatusOr<std::string> CountCollectives(const Module& module) {
  std::map<StepKind, std::map<std::string, int64_t>> counts;
  for (const auto& f : module.functions()) {
    for (const auto& n : f->body()) {
      if (!ConvertsOne(*n)) continue;
      ASSIGN_OR_RETURN(const std::vector<ConversionPart> parts, ConversionParts(*n, module.mesh()));
      for (const ConversionStep& step : parts[0].steps) {
        if (!IsLocal(step.kind)) ++counts[step.kind][module.mesh().ShowSet(step.axes())];
      }
    }
  }
  std::vector<std::string> words;
  for (StepKind kind : {StepKind::kAllToAll, StepKind::kAllReduce, StepKind::kReduceScatter,
                        StepKind::kAllGather, StepKind::kPermute, StepKind::kRotate}) {
    if (counts[kind].empty()) {
      if (kind != StepKind::kPermute && kind != StepKind::kRotate)
        words.push_back(absl::StrCat(StepKindName(kind), " 0"));
      continue;
    }
    std::string word(StepKindName(kind));
    for (const auto& [axes, n] : counts[kind]) absl::StrAppend(&word, " ", n, " (", axes, ")");
    words.push_back(std::move(word));
  }
  return absl::StrJoin(words, "  ");
}

}  // namespace

absl::StatusOr<bool> InsertCollectives(Program& program, const PassContext& context) {
  Module& module = *program.module;
  ConversionPlanner planner(module.mesh(), context.target,
                            context.strategy.hierarchical != strategy::Toggle::kOff);
  bool changed = false;
  LevelCounts levels;
  for (const auto& f : module.functions()) {
    ASSIGN_OR_RETURN(const bool lowered, Lowering(f.get(), &planner, context, &levels).Run());
    changed |= lowered;
  }
  ASSIGN_OR_RETURN(std::string counts, CountCollectives(module));
  context.Note(std::move(counts));
  if (levels.across > 0) {
    context.Note(absl::StrCat(levels.across, " of them leave a node of ",
                              module.mesh().Size(module.mesh().Alias("node")), ", ", levels.in_two,
                              " of these in two levels"));
  }
  return changed;
}

}  // namespace moe::passes
