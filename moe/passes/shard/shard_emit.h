// Writes a plan of the shard pass into the function: every node gets its factor assignment and the types that
// follow, mismatches become comm.convert nodes (with provenance), producers that are placed anew become nodes
// of their own.
#pragma once

#include "absl/status/status.h"
#include "moe/passes/shard/shard_search.h"

namespace moe::passes {

struct EmitCounts {
  int64_t placed = 0, conversions = 0, clones = 0;
};

// The graph must be the one that the plan was made for. Errors are those of the builder.
absl::StatusOr<EmitCounts> EmitPlan(const ShardGraph& graph, const ShardPlan& plan,
                                    ConversionPlanner* planner);

}  // namespace moe::passes
