// remove-dead-nodes: erases nodes whose results nobody uses. What a node does beyond its results does not
// exist in this IR (an update of state is a result, too), so ops of any effect may go, collectives included:
// every rank runs the same function. Arguments stay, because they are the function's interface.
//
//   %a = math.silu(%x) : f32[8]        (no uses)    ->    (nothing)
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

absl::StatusOr<bool> RemoveDeadNodes(Function& f, const PassContext& context);

}  // namespace moe::passes
