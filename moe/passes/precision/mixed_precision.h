// mixed-precision: computes in bf16 or f16 what the ops declare may (Precision in registry.h), and keeps the
// rest wide.
//
//   strategy "bf16"  or  mixed-precision{to=bf16}; after autodiff, before anything is cut or placed
//   strategy "bf16 grads=bf16"  or  mixed-precision{to=bf16,grads=bf16}
//
// Parameters, moments, gradients and accumulators stay as they are: f32 masters. With `grads` gradients are
// accumulated and exchanged in the narrow type, too: half their bytes, and a rounding per microbatch. What
// computes narrow reads its operands through math.cast; a statistic, a probability or a norm's weight stays
// f32 where the op declares so. Routers, softmax, losses and the update are wide. A contraction is narrow if
// all of its operands but the parameters are, unless a router reads it. A contraction that gives the gradient
// of a parameter multiplies narrow operands to a wide result, so that gradients accumulate in f32.
//
// A cast of a parameter, or back to f32, is made anew in the backward phase instead of being kept: what is
// saved for the backward is the narrow value.
//
// Working copies. A parameter whose optimizer state is sharded while it is not itself (ZeRO-1 and -2), and
// which everything reads narrow, is stored like its moments, and the step reads a narrow copy of it instead,
// a state of kind "working_copy" that the update writes:
//
//   @update:  %new.w = optim.adamw(%w, ...)              %new.copy.w = math.cast(%new.w)    -> state copy.w
//
// So a rank holds 2 bytes of such a parameter and its part of 12 (arXiv 1910.02054, section 3.1), no cast is
// made per microbatch, and what is gathered after the update has half the bytes.
//
// For f16 the backward begins by multiplying the losses by the scalar "loss_scale". @update divides by it
// ("inv_loss_scale"): the squared norm before clipping, and the gradients through the factor of optim.clip. A
// non-finite gradient skips the step, and the host then halves the scale (moe/train/run/loss_scale.h). bf16
// has the range of f32 and needs no scale.
#pragma once

#include "absl/status/statusor.h"
#include "moe/ir/program.h"

namespace moe::passes {

struct PassContext;

// Strategy or options name a narrow type.
bool AsksForMixedPrecision(const PassContext& context);

// Errors: InvalidArgument for another dtype, or parameters that are not f32; FailedPrecondition without
// @step, or before autodiff.
absl::StatusOr<bool> MixedPrecision(Program& program, const PassContext& context);

}  // namespace moe::passes
