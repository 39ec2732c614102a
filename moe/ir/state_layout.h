// StateLayout: where the persistent state of a run lives. Programs that share a run's state (one per length
// of sequence, say) may place their computation differently, but not the state: parameters and moments have
// the placement, the stage and, by `plan-memory`, the offset that the first of them chose.
//
//   ASSIGN_OR_RETURN(StateLayout layout, StateLayoutOf(first.plan.program));
//   context.layout = &layout;          // partition-stages and shard now keep to it
//   RETURN_IF_ERROR(CheckSameState(first.plan.program, second.plan.program));
//
// Accumulators (gradients, reports) live for one step and are each program's own. Plain data.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/ir/program.h"

namespace moe {

struct StateLayout {
  std::vector<int> layer_cuts;                  // chunk c has layers [cuts[c], cuts[c + 1])
  std::map<std::string, Placement> placements;  // of parameters and moments, by name
};

// Whether a state outlives a step, that is, is not an accumulator that every step resets.
bool IsPersistent(const State& state);

// Of a program after `partition-stages` and `shard`. FailedPrecondition before.
absl::StatusOr<StateLayout> StateLayoutOf(const Program& program);

// FailedPrecondition naming the first persistent state that the two place, or store, differently.
absl::Status CheckSameState(const Program& a, const Program& b);

}  // namespace moe
