// checkpoint: what the backward of a chunk computes again instead of keeping it from the forward.
//
//   none       keep everything that the backward reads
//   selective  compute cheap values again (norms, activations, dispatch, ...: no GEMM, no attention, no
//   collective, no
//              decision) where all that they need is kept anyway, so that each one saves its bytes
//   full       inside layers, keep the residual stream between layers and what may not be computed twice;
//   compute the
//              rest again, collectives included
//   OP+OP...   like selective, but with these ops; after a policy, besides it
//   auto       the least recomputation that fits a byte budget: of all choices of values to save whose bytes,
//   times the
//              microbatches in flight under the schedule, fit, the one that adds the fewest seconds by the
//              cost model. recompute_search.h has the algorithm. The budget of a stage is
//              Strategy::checkpoint_budget or, where there is a memory limit, what the limit leaves beside
//              states, frames and the rest: the passes that follow are run on a copy, and what a stage's peak
//              exceeds the limit by is taken off its budget, until it fits.
//
// A recomputed node is a clone in the backward phase, right before what needs it first, with the same
// placement and provenance "checkpoint". Decisions, random nodes and updates of state are never cloned: the
// first gives other routes or other noise, the last counts twice; what depends on a sum so far is kept, too.
// Collectives repeat in the one order that all ranks of a stage share, since they run one program. Parameters
// that ZeRO-3 gathered are no residuals under any policy: `shard` gathers them again for the backward.
//
// Works on placed chunk functions, between insert-collectives and split-phases. Option mode=: the policy,
// instead of the strategy's word. Errors (InvalidArgument): what ParseCheckpointPolicy refuses; auto without
// a budget, or with one that nothing fits, with the fewest bytes that would.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

absl::StatusOr<bool> Checkpoint(Program& program, const PassContext& context);

}  // namespace moe::passes
