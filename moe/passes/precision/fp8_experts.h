// fp8-experts: marks the products of the experts to be multiplied in e4m3.
//
//   strategy "bf16 fp8_experts"
//   before autodiff: math.einsum(%d, %w_gate) {eq = "e b c p h, e h f -> e b c p f", multiply = "f8e4m3"}
//
// Those with a parameter of class "expert" as an operand: gate, up and down projections of routed experts,
// whose gradients, of inputs and of weights, inherit the mark from autodiff: all three products are
// multiplied so, as in DeepSeek-V3 (arXiv 2412.19437, section 3.3.1). Everything else, shared experts and
// routers among it, stays as it is. The mark is all there is: kernels honour it
// (moe/kernels/rounded_operands.h), cost takes the target's rate.
#pragma once

#include "absl/status/statusor.h"
#include "moe/ir/program.h"

namespace moe::passes {

struct PassContext;

// The strategy has the word fp8_experts.
bool AsksForFp8Experts(const PassContext& context);

// Error: InvalidArgument without bf16 and for targets without such products; FailedPrecondition behind
// autodiff.
absl::StatusOr<bool> Fp8Experts(Program& program, const PassContext& context);

}  // namespace moe::passes
