// split-phases: cuts each @chunk<c> into @forward<c> and @backward<c>.
//
// What the backward needs of the forward becomes explicit: a forward value that a backward node reads is a
// result of @forward<c> and an argument of @backward<c>, both bound {kind = "residual", name = <value>}, in
// the order in which the forward computes them. Arguments (parameters, batch, scalars, the boundary value
// from the chunk before) are not saved, since both functions have them. Nor is a value that the chunk sends
// on: its boundary slot is kept until the backward is done. Updates of state in the forward (reports) stay
// there.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

absl::StatusOr<bool> SplitPhases(Program& program, const PassContext& context);

// Forward values of a chunk function that backward nodes read, without arguments, in order of computation:
// the residuals that split-phases would make.
std::vector<Value> ResidualsOf(const Function& chunk);

// Names of the chunk functions "chunk0".."chunkN-1" that a module has, in order.
std::vector<Function*> ChunkFunctions(const Module& module);

}  // namespace moe::passes
