// What `checkpoint` does to one chunk once it is known which nodes are computed again, and what all its
// policies ask of the graph. The choice itself is made in checkpoint.cc, and for `auto` in
// checkpoint_auto.cc.
//
//   std::set<Node*> nodes = ...;                   // of the forward phase
//   const RecomputeStats s = Recompute(chunk, nodes);
//
// Not thread-safe, like the graph.
#pragma once

#include <cstdint>
#include <set>

#include "moe/ir/graph.h"

namespace moe::passes {

// An argument that holds the same in the backward as in the forward of one microbatch.
bool IsStable(const Node& arg, const Module& module);

// Forward nodes that may not run twice: by what they do, or because they read a state, or a sum so far, that
// has moved on when the backward runs.
std::set<const Node*> BoundToTheForward(const Function& chunk);

// Bytes of what the chunk's backward reads of its forward, on one rank.
int64_t ResidualBytes(const Function& chunk, double overload);

struct RecomputeStats {
  double flops = 0, extra_flops = 0;
  int clones = 0;
};

// Clones the nodes into the backward phase, each before its first user there, as far as something needs them.
RecomputeStats Recompute(Function* chunk, const std::set<Node*>& nodes);

}  // namespace moe::passes
