// Lets the update's reductions of gradients begin in the backward that completes the gradient. Part of
// overlap.
//
// Under ZeRO-0 and -1 gradients are summed over the data ranks once a step, in the update. Here the exchange
// moves to the function that accumulates them, behind the last accumulation, and runs in the last microbatch
// alone (`last`); earlier layers run their backward meanwhile. Its future crosses to the update, where a
// comm.done takes its place:
//
//   before:  @update0:    %r = comm.all_reduce(%grad)
//   after:   @backward0:  %f = comm.start(%acc) {last = true, ...}  ->  future
//            @update0:    %r = comm.done(%f, %grad)
//
// Gradients that several functions of a stage accumulate (a head tied to the embedding) are left alone.
#pragma once

#include "absl/status/statusor.h"
#include "moe/ir/program.h"

namespace moe::passes {

// How many exchanges moved. Wants split phases and update functions.
absl::StatusOr<int> ReduceGradientsEarly(Program& program);

}  // namespace moe::passes
