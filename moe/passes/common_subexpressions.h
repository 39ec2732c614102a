// common-subexpressions: one node for nodes that compute the same: equal op, operands, attributes, types and
// placement, in one phase and on one queue. The first one stays.
//
//   %a = math.silu(%x) : f32[8]
//   %b = math.silu(%x) : f32[8]        ->    uses of %b become uses of %a
//
// Not merged: stateful and random nodes; a result whose storage another node takes over (an in-place update
// would destroy it for the others); anything across phases, because a value kept from forward to backward is
// a residual, and whether to keep or to recompute it is the business of `checkpoint`.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

absl::StatusOr<bool> MergeCommonSubexpressions(Function& f, const PassContext& context);

}  // namespace moe::passes
