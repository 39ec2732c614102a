// Layout of the operands of optim.multi_adamw: kMultiAdamWScalars scalars, then p, gradient, m, v of each
// tensor. Results: p, m, v of each, then the narrow copies of the new p of those that have one.
#pragma once

#include "moe/ir/graph.h"

namespace moe {

inline constexpr int kMultiAdamWScalars = 5;  // factor, finite, learning_rate, bias1, bias2
inline constexpr int kMaxMultiAdamWTensors = 16;
// All dims of all tensors together: each is a factor of the rule, and FactorId has 127 of them.
inline constexpr int kMaxMultiAdamWDims = 64;

int MultiAdamWTensors(const Node& n);
// Index of the result that is the copy of a tensor, or -1.
int MultiAdamWCopy(const Node& n, int tensor);

}  // namespace moe
