// mixed-precision: computes in bf16 or f16 what the ops declare may (Precision in registry.h), and keeps the
// rest wide.
//
//   strategy "bf16"  or  mixed-precision{to=bf16}; after autodiff, before anything is cut or placed
//
// Parameters, moments, gradients and accumulators stay as they are: f32 masters. What computes narrow reads
// its operands through math.cast; a statistic, a probability or a norm's weight stays f32 where the op wants
// it so. Routers, softmax, losses and the update are wide. A contraction follows its operands: narrow if all
// of them are that are no parameters, except where a router reads. A contraction that gives the gradient of a
// parameter multiplies narrow operands to a wide result, so that gradients accumulate in f32.
//
// A cast of a parameter, or back to f32, is made anew in the backward phase instead of being kept: what is
// saved for the backward is the narrow value.
//
// For f16 the losses are multiplied by the scalar "loss_scale" where the backward begins, and @update divides
// by it
// ("inv_loss_scale"): the squared norm before clipping, the gradients through the factor of optim.clip. A
// non-finite gradient skips the step as ever; the host then halves the scale (moe/train/loss_scale.h). bf16
// has the range of f32 and needs none.
#pragma once

#include "absl/status/statusor.h"
#include "moe/ir/program.h"

namespace moe {

struct PassContext;

// Errors: InvalidArgument for another dtype, or parameters that are not f32; FailedPrecondition without
// @step, or before autodiff.
absl::StatusOr<bool> MixedPrecision(Program& program, const PassContext& context);

}  // namespace moe
