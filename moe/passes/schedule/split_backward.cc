#include "moe/passes/schedule/split_backward.h"

#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/passes/copy_nodes.h"
#include "moe/passes/schedule/schedule_table.h"

namespace moe::passes {
namespace {

// Nodes of the input gradient: what it gives, and all that they need.
std::set<const Node*> InputGradNodes(const Function& backward) {
  std::vector<const Node*> stack;
  bool sends = false;
  for (int i = 0; i < backward.num_results(); ++i) {
    if (backward.result_binding(i).kind == Binding::kState) continue;
    sends = true;
    stack.push_back(backward.result(i).node);
  }
  for (const auto& n : backward.body()) {
    const bool stream = !sends && n->StringOr("tag", "") == "residual_stream";
    if (stream || n->provenance.pass == "checkpoint") stack.push_back(n.get());
  }
  std::set<const Node*> nodes;
  while (!stack.empty()) {
    const Node* n = stack.back();
    stack.pop_back();
    if (n->Is("arg") || !nodes.insert(n).second) continue;
    for (const Value& v : n->operands()) stack.push_back(v.node);
  }
  return nodes;
}

// A half under construction.
struct Half {
  Function* function;
  ValueMap map;

  void AddArg(Value v, const Binding& binding, const Attributes& attributes = {}) {
    Value arg = function->AddArg(v.name(), v.type(), binding, attributes);
    arg.node->scope = v.node->scope;
    map[v] = arg;
  }
};

void Split(Module& module, const Function& backward, int chunk) {
  const std::set<const Node*> of_input = InputGradNodes(backward);
  Half input{module.AddFunction({FunctionKind::kInputGrad, chunk}), {}};
  Half weight{module.AddFunction({FunctionKind::kWeightGrad, chunk}), {}};
  const auto half_of = [&](const Node* n) -> Half& { return of_input.count(n) ? input : weight; };
  for (Node* a : backward.args()) {
    for (const Use& u : a->uses()) {
      Half& half = u.user->Is("return") ? weight : half_of(u.user);
      if (half.map.count(a->result()) == 0) half.AddArg(a->result(), a->binding, a->attributes());
    }
  }
  std::vector<Value> handed_over;
  for (const auto& n : backward.body()) {
    if (of_input.count(n.get()) == 0) continue;
    for (int r = 0; r < n->num_results(); ++r) {
      const Value v{n.get(), r};
      const Binding* boundary = nullptr;
      bool read = false;
      for (const Use& u : n->uses(r)) {
        if (!u.user->Is("return")) {
          read = read || of_input.count(u.user) == 0;
        } else if (backward.result_binding(u.operand).kind == Binding::kBoundary) {
          boundary = &backward.result_binding(u.operand);
        }
      }
      if (!read) continue;
      weight.AddArg(v, boundary != nullptr ? *boundary : Binding(Binding::kWeightResidual, v.name()));
      if (boundary == nullptr) handed_over.push_back(v);
    }
  }
  for (const auto& n : backward.body()) {
    Half& half = half_of(n.get());
    CopyNode(*n, half.function, &half.map);
  }
  for (int i = 0; i < backward.num_results(); ++i) {
    const Value v = backward.result(i);
    Half& half = v.node->Is("arg") ? weight : half_of(v.node);
    half.function->AddResult(half.map.at(v), backward.result_binding(i));
  }
  for (const Value& v : handed_over) {
    input.function->AddResult(input.map.at(v), {Binding::kWeightResidual, v.name()});
  }
}

}  // namespace

absl::StatusOr<bool> SplitBackward(Program& program, const PassContext& context) {
  Module& module = *program.module;
  const std::vector<bool> split = SplitChunks(program.schedule);
  int64_t input_nodes = 0, weight_nodes = 0, handed_over = 0;
  bool changed = false;
  for (size_t c = 0; c < split.size(); ++c) {
    if (!split[c]) continue;
    const int chunk = static_cast<int>(c);
    const FunctionRole role(FunctionKind::kBackward, chunk);
    const Function* backward = module.Find(role);
    if (backward == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("split-backward needs a function @", role.Name(), "; run split-phases before it"));
    }
    Split(module, *backward, chunk);
    module.RemoveFunction(role.Name());
    const Function* input = module.Find({FunctionKind::kInputGrad, chunk});
    input_nodes += input->num_nodes();
    weight_nodes += module.Find({FunctionKind::kWeightGrad, chunk})->num_nodes();
    for (int r = 0; r < input->num_results(); ++r) {
      handed_over += input->result_binding(r).kind == Binding::kWeightResidual;
    }
    changed = true;
  }
  if (changed) {
    context.Note(absl::StrCat("input gradients ", input_nodes, " nodes, weight gradients ", weight_nodes,
                              ", ", handed_over, " values handed over"));
  }
  return changed;
}

}  // namespace moe::passes
