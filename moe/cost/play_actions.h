// When each stage does what in a training step, if its actions take so long.
//
//   const StepTimeline t = PlayActions(program, CostDurations(program, target));
//   std::cout << t.end - t.begin << " seconds, and a share of " << t.bubble << " that the pipeline leaves unused";
//
// By CostDurations an action runs its nodes as the executor does, on two queues beside each other: a node begins when
// all before it on its queue are done and, on the compute queue, what it reads has arrived from the other; a
// collective begins not before compute has come to its place in the function. The action is done when both queues
// are, but for exchanges whose results a later action waits for: these run on beside it. Values; thread-safe.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "moe/cost/target.h"
#include "moe/ir/program.h"

namespace moe::cost {

// What a stage's actions leave behind on its communication queue.
struct CommQueueState {
  double free_at = 0;                       // when all that it was given is done
  std::map<std::string, double> in_flight;  // by name of the future: when it arrives
};

struct ActionRun {
  const Action& action;
  int stage;
  double begin;
  bool last;  // of the function in the step (LastRuns)
};

struct Durations {
  // Seconds, or units, that keep the stage from its next action. Asked once for each action, in the stage's order.
  std::function<double(const ActionRun& run, CommQueueState* queue)> action;
  std::function<double(const Action& send)> transfer;  // from its stage to the other
  std::string source;                                  // "planned: costs of target h100"
  bool seconds = false;
};
// Forward 1, backward 2, its halves 1 each; an update 1; transfers take no time.
Durations UnitDurations();
// By the costs of the nodes on the target. Holds no reference to the program.
Durations CostDurations(const Program& program, const Target& target);

struct StepSpan {
  enum Kind { kForward, kBackward, kInputGrad, kWeightGrad, kUpdate, kOther, kTransfer, kCollective };
  Kind kind = kForward;
  int chunk = -1, microbatch = -1;
  double begin = 0, end = 0;
  std::string what;  // "F0.3", "recv act.0 mb3 <- stage 0": for people
};
// A forward, a backward or a half of one.
inline bool IsPipelineWork(const StepSpan& span) { return span.kind <= StepSpan::kWeightGrad; }

struct StepTimeline {
  std::vector<std::vector<StepSpan>> spans;     // of each stage (or rank), by begin
  double begin = 0, end = 0;                    // of everything
  double pipeline_begin = 0, pipeline_end = 0;  // of pipeline work
  // From pipeline_begin to pipeline_end, the share of the rows' time in which they do no pipeline work.
  double bubble = 0;
};
// Sorts the spans, and fills in what stands below them.
void Measure(StepTimeline* timeline);

// Plays the actions of `name`: a stage does one thing at a time, a receive waits for its send, an update that reduces
// over stages waits for them. Sending costs the sender nothing. Empty without a schedule, and cut short where the
// schedule cannot go on.
StepTimeline PlayActions(const Program& program, const Durations& durations,
                         const std::string& name = "train_step");

}  // namespace moe::cost
