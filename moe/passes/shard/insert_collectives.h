// insert-collectives: lowers comm.convert into the collectives that do it.
//
//   %y = comm.convert(%x) {axes = [tp]} : f32[8, 16@tp]         // %x: f32[8, 16] partial(tp)
//   ->
//   %y = comm.reduce_scatter(%x) {axes = [tp]} : f32[8, 16@tp]
//
// The planner is that of the shard pass (conversion.h): one node per phase, comm.reshard where the steps of a
// phase have no placement in between. Conversions of one value share what they have in common: a placement
// that the value, or an intermediate, already has in the same phase is not made again, and a conversion
// starts from the nearest one. What was gathered in the forward phase is not kept for the backward.
//
// Collectives that leave a node (the mesh's alias "node") are done in two levels where the target's links
// make that cheaper, or as the strategy word `hierarchical` says: an all_to_all and a reduce_scatter inside
// first, an all_gather across first, as steps of one node; an all_reduce as a reduce_scatter inside, an
// all_reduce across and an all_gather inside. Exchanges give the same bits; sums are taken inside nodes, in
// ascending rank, then across.
//
// Errors: InvalidArgument for a conversion that does not exist (shard -> partial, max <-> sum), naming the
// value.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

absl::StatusOr<bool> InsertCollectives(Program& program, const PassContext& context);

}  // namespace moe::passes
