#include "moe/ir/builder.h"
#include "moe/ir/ops/ops.h"

namespace moe {

void RegisterOptimOps(OpRegistry* r) {
  r->Add(OpDef("optim.accumulate")
             .Doc("state + x, in the state's storage.")
             .Operands({"state", "x"})
             .Results({"state"})
             .Elementwise()
             .JointlyLinear()
             .NoGradient()
             .InPlace({{0, 0}})
             .Effects(kStateful));
  r->Add(OpDef("optim.clip")
             .Doc("From the squared global norm: the norm, the factor min(1, max_norm / (norm + 1e-6)) for "
                  "the gradients (1 if max_norm is 0), and whether the norm is finite (1 or 0).")
             .Operands({"norm_squared"})
             .Results({"norm", "factor", "finite"})
             .Attr("max_norm", AttrKind::kFloat)
             .Elementwise()
             .NoGradient());
  r->Add(OpDef("optim.adamw")
             .Doc("AdamW with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2): g = factor "
                  "gradient; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; p = p - lr (m / "
                  "bias1 / (sqrt(v / bias2) + eps) + weight_decay p), bias_i = 1 - beta_i^t. With finite = 0 "
                  "everything stays as it is, and so does each element whose p would not be finite where "
                  "it is stored: on the host the step ends with an error then.")
             .Operands({"p", AnyFloatOperand("gradient"), "m", "v", "factor", "finite", "learning_rate",
                        "bias1", "bias2"})
             .Results({"p", "m", "v"})
             .Attr("beta1", AttrKind::kFloat)
             .Attr("beta2", AttrKind::kFloat)
             .Attr("eps", AttrKind::kFloat)
             .Attr("weight_decay", AttrKind::kFloat)
             .ResultDTypes({SameAs(0), SameAs(2), SameAs(3)})
             .Elementwise()
             .NoGradient()
             .FlopsPerElement(14)
             .InPlace({{0, 0}, {1, 2}, {2, 3}})
             .Effects(kStateful));
}

}  // namespace moe
