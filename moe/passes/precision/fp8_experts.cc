#include "moe/passes/precision/fp8_experts.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "moe/ir/state.h"
#include "moe/passes/pass.h"

namespace moe::passes {
namespace {

constexpr char kPass[] = "fp8-experts";

bool IsExpertWeight(const Module& module, Value v) {
  if (!v.node->Is("arg") || v.node->binding.kind != Binding::kState) return false;
  const State* s = module.FindState(v.node->binding.name);
  return s != nullptr && AttrString(s->attributes, "kind") == "parameter" &&
         AttrString(s->attributes, "class") == "expert";
}

}  // namespace

bool AsksForFp8Experts(const PassContext& context) { return context.strategy.fp8_experts; }

absl::StatusOr<bool> Fp8Experts(Program& program, const PassContext& context) {
  if (!AsksForFp8Experts(context)) return false;
  if (context.strategy.precision != strategy::Precision::kBF16) {
    return absl::InvalidArgumentError(
        absl::StrCat(kPass, ": fp8_experts rounds what is computed in bf16; legal with the word bf16"));
  }
  if (context.target.f8_flops <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(kPass, ": target ", context.target.name, " has no products of e4m3"));
  }
  Function* const step = program.module->Find(FunctionKind::kStep);
  int marked = 0;
  for (Node* n : step->NodesOf("math.einsum")) {
    if (std::none_of(n->operands().begin(), n->operands().end(),
                     [&](Value v) { return IsExpertWeight(*program.module, v); })) {
      continue;
    }
    n->Set("multiply", std::string("f8e4m3"));
    ++marked;
  }
  context.Note(marked == 0 ? "no experts" : absl::StrCat(marked, " products, and their gradients, in e4m3"));
  return marked > 0;
}

}  // namespace moe::passes
