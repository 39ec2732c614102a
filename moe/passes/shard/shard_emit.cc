#include "moe/passes/shard/shard_emit.h"

#include <glog/logging.h>

#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"

namespace moe::passes {
namespace {

// What the conversion does to the value, for the name of its result.
absl::string_view Participle(const ConversionPhase& phase) {
  absl::string_view word;
  for (const ConversionStep& step : phase.steps) {
    switch (step.kind) {
      case StepKind::kZero:
        if (word.empty()) word = "zeroed";
        break;
      case StepKind::kSlice:
        if (word.empty()) word = "part";
        break;
      case StepKind::kReduceScatter:
        word = "scattered";
        break;
      case StepKind::kAllReduce:
        word = "reduced";
        break;
      case StepKind::kAllToAll:
        word = "exchanged";
        break;
      case StepKind::kAllGather:
        word = "gathered";
        break;
      case StepKind::kPermute:
        word = "permuted";
        break;
      case StepKind::kRotate:  // is no conversion
        break;
    }
  }
  return word;
}

class Emitter {
 public:
  Emitter(const ShardGraph& graph, const ShardPlan& plan, ConversionPlanner* planner)
      : g_(graph), plan_(plan), planner_(*planner) {}

  absl::StatusOr<EmitCounts> Emit() {
    for (size_t v = 0; v < g_.values.size(); ++v) {
      const ShardValue& x = g_.values[v];
      if (x.producer >= 0) continue;
      PlacementId p = x.given;
      if (const auto it = plan_.decided.find(x.open_state); it != plan_.decided.end()) p = it->second;
      x.value.node->SetType(0, Placed(x.value.type(), p));
      made_[{static_cast<int>(v), p}] = x.value;
    }
    first_user_.assign(g_.values.size(), nullptr);
    for (auto n = g_.nodes.rbegin(); n != g_.nodes.rend(); ++n) {
      for (int v : n->operands) first_user_[v] = n->node;
    }
    // New nodes stand before the next node of the function that stays.
    std::vector<Node*> next(plan_.program.size(), nullptr);
    Node* following = nullptr;
    for (int i = static_cast<int>(plan_.program.size()) - 1; i >= 0; --i) {
      next[i] = following;
      if (plan_.program[i].kind == Instruction::kOp) following = g_.nodes[plan_.program[i].node].node;
    }
    absl::flat_hash_set<const Node*> kept;
    for (size_t i = 0; i < plan_.program.size(); ++i) {
      const Instruction& x = plan_.program[i];
      switch (x.kind) {
        case Instruction::kOp:
          if (IsExchange(x)) {
            RETURN_IF_ERROR(EmitExchange(x));
          } else {
            EmitOp(x);
            kept.insert(g_.nodes[x.node].node);
          }
          break;
        case Instruction::kClone:
          RETURN_IF_ERROR(EmitClone(x, next[i]));
          break;
        case Instruction::kConvert:
          RETURN_IF_ERROR(EmitConvert(x, next[i]));
          break;
      }
    }
    for (size_t i = 0; i < plan_.results.size(); ++i) {
      g_.function->SetResult(static_cast<int>(i), Made(g_.results[i], plan_.results[i]));
    }
    for (auto n = g_.nodes.rbegin(); n != g_.nodes.rend(); ++n) {
      if (!kept.contains(n->node)) g_.function->Erase(n->node);
    }
    return counts_;
  }

 private:
  Type Placed(const Type& type, PlacementId p) const {
    Type t = type;
    t.placement = planner_.Get(p);
    return t;
  }

  Value Made(int value, PlacementId p) const {
    const auto it = made_.find({value, p});
    CHECK(it != made_.end()) << g_.values[value].value.name() << " "
                             << PlacementToString(planner_.Get(p), planner_.mesh());
    return it->second;
  }

  void EmitOp(const Instruction& x) {
    const ShardNode& n = g_.nodes[x.node];
    for (size_t i = 0; i < n.operands.size(); ++i) {
      n.node->SetOperand(static_cast<int>(i), Made(n.operands[i], x.operands[i]));
    }
    for (size_t r = 0; r < n.results.size(); ++r) {
      n.node->SetType(static_cast<int>(r), Placed(n.node->type(r), x.results[r]));
      made_[{n.results[r], x.results[r]}] = n.node->result(static_cast<int>(r));
    }
    n.node->assignment = x.assignment;
    ++counts_.placed;
  }

  // An op whose blocks lie on different ranks is theirs to exchange.
  bool IsExchange(const Instruction& x) const {
    const ShardNode& n = g_.nodes[x.node];
    const int f = n.op->exchanged_factor.empty() ? -1 : n.rule->Find(n.op->exchanged_factor);
    return f >= 0 && !x.assignment[f].empty();
  }

  absl::Status EmitExchange(const Instruction& x) {
    const ShardNode& n = g_.nodes[x.node];
    CHECK(n.node->Is("math.rotate"));
    const AxisList& axes = x.assignment[n.rule->Find(n.op->exchanged_factor)];
    Builder b = Builder::Before(n.node);
    b.provenance = {"shard", absl::StrCat("a step of the ring over ", planner_.mesh().Show(axes), ", for %",
                                          n.node->result_name())};
    const std::string name = n.node->result_name();
    n.node->SetResultName(0, name + ".logical");  // erased in the end
    ASSIGN_OR_RETURN(Node * rotate,
                     b.CreateTyped("comm.rotate", {Made(n.operands[0], x.operands[0])}, {{"axes", axes}},
                                   {Placed(n.node->type(), x.results[0])}, name));
    made_[{n.results[0], x.results[0]}] = rotate->result();
    ++counts_.placed;
    return absl::OkStatus();
  }

  // Where a new node belongs: with the node that it is made for.
  void Settle(int user, const Node* otherwise, Builder* b) const {
    const Node* n = user >= 0 ? g_.nodes[user].node : otherwise;
    b->phase = n ? n->phase : Phase::kUpdate;
    b->scope = n ? n->scope : "";
  }

  Builder At(Node* before) const { return before ? Builder::Before(before) : Builder(g_.function); }

  absl::Status EmitClone(const Instruction& x, Node* before) {
    const ShardNode& n = g_.nodes[x.node];
    Builder b = At(before);
    Settle(x.user, n.node, &b);
    b.provenance = {"shard", absl::StrCat("placed anew instead of converting %", n.node->result_name())};
    std::vector<Value> operands;
    for (size_t i = 0; i < n.operands.size(); ++i) operands.push_back(Made(n.operands[i], x.operands[i]));
    ASSIGN_OR_RETURN(Node * clone,
                     b.CreateTyped(n.node->op_name(), std::move(operands), n.node->attributes(),
                                   {Placed(n.node->type(), x.results[0])}, n.node->result_name()));
    clone->assignment = x.assignment;
    clone->queue = n.node->queue;
    made_[{n.results[0], x.results[0]}] = clone->result();
    ++counts_.clones;
    return absl::OkStatus();
  }

  absl::Status EmitConvert(const Instruction& x, Node* before) {
    const Value root = g_.values[x.value].value;
    const Conversion& conversion = planner_.Plan(x.from, x.to);
    CHECK_EQ(conversion.phases.size(), 1);
    const ConversionPhase& phase = conversion.phases[0];
    AxisList axes;
    for (const ConversionStep& step : phase.steps) {
      for (AxisId a : step.axes()) {
        if (std::find(axes.begin(), axes.end(), a) == axes.end()) axes.push_back(a);
      }
    }
    Builder b = At(before);
    Settle(x.user, first_user_[x.value], &b);
    b.provenance = {"shard",
                    absl::StrCat(DescribeConversion(phase.from, phase.to, planner_.mesh(), DimNames(root)),
                                 ", for %", root.name())};
    ASSIGN_OR_RETURN(Node * convert, b.CreateTyped("comm.convert", {Made(x.value, x.from)},
                                                   {{"axes", Axes{axes}}}, {Placed(root.type(), x.to)},
                                                   absl::StrCat(root.name(), ".", Participle(phase))));
    made_[{x.value, x.to}] = convert->result();
    ++counts_.conversions;
    return absl::OkStatus();
  }

  const ShardGraph& g_;
  const ShardPlan& plan_;
  ConversionPlanner& planner_;
  absl::flat_hash_map<std::pair<int, PlacementId>, Value> made_;
  std::vector<const Node*> first_user_;  // per value
  EmitCounts counts_;
};

}  // namespace

absl::StatusOr<EmitCounts> EmitPlan(const ShardGraph& graph, const ShardPlan& plan,
                                    ConversionPlanner* planner) {
  return Emitter(graph, plan, planner).Emit();
}

}  // namespace moe::passes
