// What a training step of a program runs, and how often: the count that the executor runs by, and that reports,
// costs and benchmarks add up by.
//
//   const StepRuns runs(program);
//   sent += static_cast<double>(runs.Of(*node)) * CommunicationCost(*node, mesh).bytes;
//
// Each stage does the actions that `schedule` resolved, in order. An action runs the nodes of its function, each on
// the queue that it says. A node that wants what all microbatches have added up says so ({last = true}), and runs
// only when its function runs for the last time. Values; the program must outlive them and stay as it is.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "moe/cost/node_cost.h"
#include "moe/ir/program.h"

namespace moe::cost {

// The actions of each stage. Before `schedule` has resolved them: those of the table's cells, without transfers, and
// none where there is no table either.
std::vector<std::vector<Action>> ActionsOf(const Program& program, const std::string& name = "train_step");

// Of each action of a stage, whether it is the last one that runs its function.
std::vector<bool> LastRuns(absl::Span<const Action> actions);

// Whether the node runs when its function does.
inline bool RunsIn(const Node& node, bool last_run) { return last_run || !node.BoolOr("last", false); }

class StepRuns {
 public:
  explicit StepRuns(const Program& program);
  // How often each rank of its stage runs the node in a step. Before there is a schedule: once in the update, and as
  // often as there are microbatches otherwise.
  int64_t Of(const Node& node) const;

 private:
  const int64_t microbatches_;
  bool scheduled_ = false;
  std::map<const Function*, int64_t> runs_;
};

// A value that a stage sends to another whenever it has made it.
struct BoundarySend {
  std::string name;
  int from_chunk = -1, to_chunk = -1, to_stage = -1;
  Phase phase = Phase::kForward;
  Type type;
  double bytes = 0;  // of one rank, each time
  int64_t runs = 0;  // a step
};
std::vector<BoundarySend> BoundariesSentBy(const Program& program, int stage);

// What a rank of the stage sends in a step, in collectives and to other stages.
CommCost SentPerStep(const Program& program, int stage);

}  // namespace moe::cost
