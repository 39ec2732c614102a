// insert-collectives: lowers comm.convert into the collectives that do it.
//
//   %y = comm.convert(%x) {axes = [tp]} : f32[8, 16@tp]         // %x: f32[8, 16] partial(tp)
//   ->
//   %y = comm.reduce_scatter(%x) {axes = [tp], steps = "reduce_scatter tp:sum>1"} : f32[8, 16@tp]
//
// The planner is that of the shard pass (conversion.h): one node per phase, comm.reshard where the steps of a
// phase have no placement in between. Conversions of one value share what they have in common: a placement
// that the value, or an intermediate, already has in the same phase is not made again, and a conversion
// starts from the nearest one. What was gathered in the forward phase is not kept for the backward.
//
// Errors: InvalidArgument for a conversion that does not exist (shard -> partial, max <-> sum), naming the
// value.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe {

absl::StatusOr<bool> InsertCollectives(Program& program, const PassContext& context);

}  // namespace moe
