#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/ir/ops/ops.h"

// Ops that only `fuse` creates. They stand after autodiff, so they have no gradient.

namespace moe {

void RegisterFusedOps(OpRegistry* r) {
  r->Add(OpDef("nn.add_rms_norm")
             .Doc("sum = x + y; normed = rms_norm(sum, weight).")
             .Operands({"x", "y", "weight"})
             .Results({"sum", "normed"})
             .Attr("eps", AttrKind::kFloat)
             .Rule("b s h!, b s h!, h! -> b s h!, b s h!")
             .NoGradient());
  r->Add(OpDef("moe.router")
             .Doc("nn.softmax, moe.top_k and moe.count of its experts in one.")
             .Operands({"logits", "mask"})
             .Results({"probability", "top", "expert", "count"})
             .Attr("k", AttrKind::kInt)
             .ResultDTypes({"=0", "=0", "s32", "s32"})
             .Rule("b c t e!, b c t -> b c t e!, b c t k!, b c t k!, e!")
             .FactorFrom("k", "k")
             .NoGradient()
             .Effects(kDecision));
}

}  // namespace moe
