// The fusion of the update: many optim.adamw nodes to few optim.multi_adamw nodes. Part of `fuse`.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

// Number of optim.multi_adamw nodes made. Users of updated tensors (gathers of parameters) move behind them,
// in their order, which is the same on all ranks.
absl::StatusOr<int> FuseAdamW(Function& f, const PassContext& context);

}  // namespace moe::passes
