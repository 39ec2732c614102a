#include "moe/passes/schedule/split_phases.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/passes/copy_nodes.h"

namespace moe::passes {
namespace {

bool ReadInBackward(Value v) {
  for (const Use& u : v.node->uses(v.index)) {
    if (!u.user->Is("return") && u.user->phase == Phase::kBackward) return true;
  }
  return false;
}

// The binding under which a chunk sends `v` on, if it does.
const Binding* BoundaryResult(const Function& chunk, Value v) {
  for (int i = 0; i < chunk.num_results(); ++i) {
    if (chunk.result(i) == v && chunk.result_binding(i).kind == Binding::kBoundary)
      return &chunk.result_binding(i);
  }
  return nullptr;
}

absl::Status Split(Module& module, const Function& chunk, int c) {
  for (const auto& n : chunk.body()) {
    for (const Value& v : n->operands()) {
      if (n->phase == Phase::kForward && !v.node->Is("arg") && v.node->phase == Phase::kBackward) {
        return absl::InternalError(absl::StrCat("split-phases: %", n->result_name(),
                                                " of the forward of chunk ", c, " reads %", v.name(),
                                                " of the backward"));
      }
    }
  }
  Function* forward = module.AddFunction({FunctionKind::kForward, c});
  Function* backward = module.AddFunction({FunctionKind::kBackward, c});
  ValueMap in_forward, in_backward;
  const auto add_arg = [](Node* a, Function* f, ValueMap* map) {
    Value v = f->AddArg(a->result_name(), a->type(), a->binding, a->attributes());
    v.node->scope = a->scope;
    (*map)[a->result()] = v;
  };
  for (Node* a : chunk.args()) {
    bool f = false, b = false;
    for (const Use& u : a->uses()) {
      if (!u.user->Is("return")) (u.user->phase == Phase::kBackward ? b : f) = true;
    }
    // Returned as it came: an update of nothing, kept where the other results of its kind are.
    if (!f && !b) f = true;
    if (f) add_arg(a, forward, &in_forward);
    if (b) add_arg(a, backward, &in_backward);
  }
  const std::vector<Value> residuals = ResidualsOf(chunk);
  for (const Value& v : residuals) {
    const Binding* sent = BoundaryResult(chunk, v);
    in_backward[v] =
        backward->AddArg(v.name(), v.type(), sent ? *sent : Binding(Binding::kResidual, v.name()));
    in_backward[v].node->scope = v.node->scope;
  }
  for (const auto& n : chunk.body()) {
    const bool b = n->phase == Phase::kBackward;
    CopyNode(*n, b ? backward : forward, b ? &in_backward : &in_forward);
  }
  for (int i = 0; i < chunk.num_results(); ++i) {
    const Value v = chunk.result(i);
    const bool b = v.node->Is("arg") ? in_forward.count(v) == 0 : v.node->phase == Phase::kBackward;
    (b ? backward : forward)->AddResult((b ? in_backward : in_forward).at(v), chunk.result_binding(i));
  }
  for (const Value& v : residuals) {
    if (BoundaryResult(chunk, v) == nullptr)
      forward->AddResult(in_forward.at(v), {Binding::kResidual, v.name()});
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<Value> ResidualsOf(const Function& chunk) {
  std::vector<Value> out;
  for (const auto& n : chunk.body()) {
    if (n->phase != Phase::kForward) continue;
    for (int i = 0; i < n->num_results(); ++i) {
      if (ReadInBackward(n->result(i))) out.push_back(n->result(i));
    }
  }
  return out;
}

std::vector<Function*> ChunkFunctions(const Module& module) {
  std::vector<Function*> out;
  while (Function* f = module.Find({FunctionKind::kChunk, static_cast<int>(out.size())})) out.push_back(f);
  return out;
}

absl::StatusOr<bool> SplitPhases(Program& program, const PassContext&) {
  Module& module = *program.module;
  const std::vector<Function*> chunks = ChunkFunctions(module);
  for (size_t c = 0; c < chunks.size(); ++c) RETURN_IF_ERROR(Split(module, *chunks[c], static_cast<int>(c)));
  for (Function* chunk : chunks) module.RemoveFunction(chunk->role().Name());
  return true;
}

}  // namespace moe::passes
