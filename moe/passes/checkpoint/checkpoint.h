// checkpoint: what the backward of a chunk computes again instead of keeping it from the forward.
//
//   none       keep everything that the backward reads
//   selective  compute cheap values again (norms, activations, dispatch, ...: no GEMM, attention, collective
//              or decision) whose operands are all kept anyway, so that each one saves its bytes
//   full       inside layers, keep only the residual stream between layers and what may not be computed
//              twice; compute the rest again, collectives included
//   OP+OP...   like selective, but with these ops; after a policy, besides it
//   auto       the least recomputation that fits a byte budget. Of all choices of values to save whose bytes,
//              times the microbatches in flight under the schedule, fit, it takes the one that adds the
//              fewest seconds by the cost model (recompute_search.h has the algorithm). The budget of a stage
//              is the strategy's checkpoint_budget or, where there is a memory limit, what the limit leaves
//              beside states, frames and the rest: the passes that follow run on a copy, and the bytes by
//              which a stage's peak exceeds the limit are taken off its budget, until it fits.
//
// A recomputed node is a clone in the backward phase, right before its first reader, with the same placement
// and provenance "checkpoint". Decisions, random nodes and updates of state are never cloned: a second
// decision could take other routes, a second random node gives other noise, and a second update counts twice.
// What depends on a sum so far is kept, too. Collectives repeat in the one order that all ranks of a stage
// share, since they run one program. Parameters that ZeRO-3 gathered are not residuals under any policy:
// `shard` gathers them again for the backward.
//
// Works on placed chunk functions, between insert-collectives and split-phases. Option mode=: the policy,
// instead of the strategy's word. Errors (InvalidArgument): what the parser of policies refuses; auto without
// a budget, or with a budget that nothing fits, naming the fewest bytes that would fit.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

// Strategy or options name a policy, legal or not, that is not none.
bool AsksForCheckpoint(const PassContext& context);

absl::StatusOr<bool> Checkpoint(Program& program, const PassContext& context);

}  // namespace moe::passes
