#include "moe/passes/insert_collectives.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/passes/conversion.h"
#include "moe/passes/shard_graph.h"

namespace moe {
namespace {

class Lowering {
 public:
  Lowering(Function* f, ConversionPlanner* planner) : f_(f), planner_(*planner) {}

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
      ASSIGN_OR_RETURN(y, Step(n, root, y, phase, &made));
    }
    const std::string name = n->result_name();
    f_->ReplaceAllUses(n->result(), y);
    f_->Erase(n);
    if (made) y.node->SetResultName(0, name);
    return absl::OkStatus();
  }

  // One node per phase, or the value that has the placement already. `made`: whether it is new.
  absl::StatusOr<Value> Step(Node* n, Value root, Value from, const ConversionPhase& phase, bool* made) {
    const PlacementId to = planner_.Intern(phase.to);
    *made = false;
    for (const Variant& v : variants_[root]) {
      if (v.phase == n->phase && v.placement == to) return v.value;
    }
    AxisList axes;
    bool local = true;
    for (const ConversionStep& step : phase.steps) {
      local &= IsLocal(step.kind);
      for (AxisId a : step.axes()) {
        if (std::find(axes.begin(), axes.end(), a) == axes.end()) axes.push_back(a);
      }
    }
    const std::string op =
        phase.steps.size() == 1 ? absl::StrCat("comm.", StepKindName(phase.steps[0].kind)) : "comm.reshard";
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
        b.CreateTyped(op, {from}, {{"axes", Axes{axes}}, {"steps", PrintSteps(phase.steps, planner_.mesh())}},
                      {std::move(type)}, root.name()));
    if (!local) node->queue = Queue::kComm;
    *made = true;
    root_[node->result()] = root;
    variants_[root].push_back({to, node->result(), n->phase});
    return node->result();
  }

  Function* const f_;
  ConversionPlanner& planner_;
  std::map<Value, Value> root_;
  std::map<Value, std::vector<Variant>> variants_;
};

// "all_to_all 16 (ep)  all_reduce 24 (tp) 9 (dp)  reduce_scatter 0  all_gather 0"
absl::StatusOr<std::string> CountCollectives(const Module& module) {
  std::map<StepKind, std::map<std::string, int64_t>> counts;
  for (const auto& f : module.functions()) {
    for (const auto& n : f->body()) {
      const std::string steps = n->StringOr("steps", "");
      if (steps.empty()) continue;
      ASSIGN_OR_RETURN(const std::vector<ConversionStep> parsed, ParseSteps(steps, module.mesh()));
      for (const ConversionStep& step : parsed) {
        if (!IsLocal(step.kind)) ++counts[step.kind][module.mesh().ShowSet(step.axes())];
      }
    }
  }
  std::vector<std::string> words;
  for (StepKind kind : {StepKind::kAllToAll, StepKind::kAllReduce, StepKind::kReduceScatter,
                        StepKind::kAllGather, StepKind::kPermute}) {
    if (counts[kind].empty()) {
      if (kind != StepKind::kPermute) words.push_back(absl::StrCat(StepKindName(kind), " 0"));
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
  ConversionPlanner planner(module.mesh());
  bool changed = false;
  for (const auto& f : module.functions()) {
    ASSIGN_OR_RETURN(const bool lowered, Lowering(f.get(), &planner).Run());
    changed |= lowered;
  }
  ASSIGN_OR_RETURN(std::string counts, CountCollectives(module));
  context.Note(std::move(counts));
  return changed;
}

}  // namespace moe
