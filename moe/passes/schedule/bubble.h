// The time that a schedule's table takes when only its order and its dependencies count: each stage runs its
// cells in order, each as soon as its inputs are ready; a value takes `transfer` to reach another stage and
// keeps no stage busy meanwhile.
//
//   BubbleTimes t;
//   t.forward = 1; t.input_grad = 1; t.weight_grad = 1;
//   ASSIGN_OR_RETURN(Schedule s, MakeSchedule(strategy));
//   ASSIGN_OR_RETURN(BubbleReport r, SimulateTable(s, t));
//   r.bubble;  // share of the step that the busiest stage stands idle: 1 - work / makespan
//
// Times are of one chunk and one microbatch, in any unit. With the measured times of a paper this gives its
// published rates (Qi et al., arXiv 2401.10241, table 5).
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "moe/ir/program.h"

namespace moe::passes {

struct BubbleTimes {
  double forward = 1, input_grad = 1, weight_grad = 1;  // a whole backward takes both of these
  double transfer = 0;
  // A forward and the whole backward that follows it run as one, both ready when both are done: how
  // DualPipe's paper counts. One after the other, as here, the first is ready earlier and the bubble smaller.
  bool together = false;
};

struct BubbleReport {
  double makespan = 0;
  double work = 0;    // of the busiest stage
  double bubble = 0;  // 1 - work / makespan
  // By stage: most forwards, of all its chunks together, whose residuals are held at one time; each is 1 /
  // (chunks of the stage) of what the stage computes in a microbatch.
  std::vector<int> in_flight;
};

// Wants a table that ValidateTable accepts; its errors otherwise.
absl::StatusOr<BubbleReport> SimulateTable(const Schedule& schedule, const BubbleTimes& times);

// The page's table: schedules by stages and microbatches, with F = I = W, as Markdown. Deterministic.
std::string BubbleTableMarkdown();

}  // namespace moe::passes
