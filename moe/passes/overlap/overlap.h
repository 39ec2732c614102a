// overlap: hides communication behind compute.
//
// Every function of a chunk gets a new order, found by running it on two queues with the costs of its nodes:
// an exchange begins as soon as its operands are ready; while a node would wait for one, nodes that need
// nothing of it come first (a gradient of weights while the gradient of tokens travels, a shared expert while
// tokens are dispatched). Parameters stored in shards are gathered at most one layer before the layer that
// needs them. Nothing moves further than into the next layer, which bounds what lives longer.
//
// An exchange with work between it and its first reader is then cut in two:
//
//   %y = comm.all_gather(%x) {...}         %f = comm.start(%x) {...} : future<f32[8, 4]>
//   %a = math.silu(%z)               ->    %a = math.silu(%z)
//   %b = math.mul(%y, %a)                  %y = comm.done(%f, %x)
//                                          %b = math.mul(%y, %a)
//
// Reductions of gradients that the update would make begin in the last microbatch's backward
// (reduce_early.h).
//
// Source and destination are held until the done. Nodes compute what they did, so results are bitwise the
// same.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

// The strategy says overlap=on, or leaves it open and the target says so.
bool AsksForOverlap(const PassContext& context);

// Wants lowered collectives and split phases. Strategy::overlap says whether; left open, the target does.
absl::StatusOr<bool> Overlap(Program& program, const PassContext& context);

}  // namespace moe::passes
