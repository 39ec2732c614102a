// remove-dead-nodes: erases nodes whose results no node uses. In this IR a node has no effect beyond its
// results (an update of state is a result, too), so any op may go, collectives included:
// every rank runs the same function. Arguments stay, because they are the function's interface.
//
//   %a = math.silu(%x) : f32[8]        (no uses)    ->    (nothing)
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

absl::StatusOr<bool> RemoveDeadNodes(Function& f, const PassContext& context);

}  // namespace moe::passes
