// checkpoint: what the backward of a chunk computes again instead of keeping it from the forward.
//
//   none       keep everything that the backward reads
//   selective  compute cheap values again (norms, activations, dispatch, ...: no GEMM, no attention, no
//   collective, no
//              decision) where all that they need is kept anyway, so that each one saves its bytes
//   full       inside layers, keep the residual stream between layers and what may not be computed twice;
//   compute the
//              rest again, collectives included
//
// A recomputed node is a clone in the backward phase, right before what needs it first, with the same
// placement and provenance "checkpoint". Decisions, random nodes and updates of state are never cloned: the
// first gives other routes or other noise, the last counts twice; what depends on a sum so far is kept, too.
// Collectives repeat in the one order that all ranks of a stage share, since they run one program.
//
// Works on placed chunk functions, between insert-collectives and split-phases. Option recompute=OP computes
// an op again that `selective` would keep; InvalidArgument, with the reason, for ops of which that is never
// legal.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe {

absl::StatusOr<bool> Checkpoint(Program& program, const PassContext& context);

}  // namespace moe
