// The order of a function's nodes on a compute and a communication queue that run beside each other: a list
// schedule by the nodes' costs. What overlap follows.
//
//   const TwoQueueOrder result = OrderForTwoQueues(order, seconds);
//   Rearrange(f, result.nodes);
//
// Pure; deterministic.
#pragma once

#include <vector>

#include "absl/types/span.h"
#include "moe/ir/graph.h"
#include "moe/passes/overlap/node_order.h"

namespace moe::passes {

struct TwoQueueOrder {
  std::vector<Node*> nodes;
  double compute = 0, communication = 0;  // seconds of all nodes of each queue
  double stalled = 0;                     // of these, the compute queue waited
  // Share of the communication that the compute queue did not wait for.
  double hidden() const {
    return communication > 0 ? 1 - (stalled < communication ? stalled / communication : 1) : 0;
  }
};

// seconds: of each node, by index.
TwoQueueOrder OrderForTwoQueues(const NodeOrder& order, absl::Span<const double> seconds);

}  // namespace moe::passes
