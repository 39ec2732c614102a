// split-backward: cuts @backward<c> into @input_grad<c> and @weight_grad<c>, for the chunks whose cells in
// the schedule's table are I and W. A table without such cells leaves everything as it is.
//
// A node is of the weight gradient if only accumulators depend on it. The rest computes what the stage before
// is waiting for: the gradient of the chunk's input; in the first chunk, which has none to send, that of the
// embedding's output, so that its two halves weigh as much as those of the others. Recomputation belongs to
// the input gradient, whichever half reads it.
//
// What the weight gradient needs of the input gradient is a result of the one and an argument of the other,
// bound {kind = "weight_residual", name = <value>}; it has slots of its own (Action::weight_slot), taken by I
// and freed by W. What it needs of the forward stays in the forward's residual set, which is then freed by W
// instead of B.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

// Wants split phases and Program::schedule.table.
absl::StatusOr<bool> SplitBackward(Program& program, const PassContext& context);

}  // namespace moe::passes
