// bucket-collectives: lets small collectives that could travel together travel together.
//
//   %a = comm.all_reduce(%x) {axes = [dp]}
//   %b = comm.all_reduce(%y) {axes = [dp]}      ->      %a, %b = comm.bucket(%x, %y) {axes = [dp]}
//
// Taken together are reductions of gradients (to be accumulated, or in the update), scalars of the update,
// gathers of updated parameters, and gathers of parameters that one layer needs: of one kind, over the same
// axes, of one dtype. A bucket holds at most Strategy::bucket bytes of what its ranks hold before a reduction
// or after a gather; a tensor larger than that travels alone. A reduction waits for the last of its bucket, a
// gather goes with the first. What travels compressed shares buckets with what travels in the same format;
// every member keeps its own blocks and scales. The order of every sum stays as it is, so results are bitwise
// the same.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

// Strategy or target name a size.
bool AsksForBuckets(const PassContext& context);

// Wants lowered collectives. 0 bytes: changes nothing.
absl::StatusOr<bool> BucketCollectives(Program& program, const PassContext& context);

}  // namespace moe::passes
