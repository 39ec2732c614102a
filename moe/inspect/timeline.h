// When each stage (or rank) does what in one training step: planned, from durations of the actions, or
// measured, from the trace of a run.
//
//   Timeline units = PlanTimeline(program);                              // forward 1, backward 2
//   Timeline seconds = PlanTimeline(program, CostDurations(program, cost::Target()));   // by the cost model
//   ASSIGN_OR_RETURN(Timeline measured, MeasuredTimeline(trace_json, mesh, {.step = -1}));
//   std::cout << TimelineText(measured);
//   RETURN_IF_ERROR(WriteFile("timeline.svg", TimelineSvg(measured)));
//
// The bubble is what a pipeline leaves unused: from the start of the first to the end of the last forward or
// backward on any row, the share of the rows' time in which they run none. Values, no ownership; thread-safe.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/cost/target.h"
#include "moe/ir/program.h"

namespace moe::inspect {

struct TimelineSpan {
  enum Kind { kForward, kBackward, kInputGrad, kWeightGrad, kUpdate, kOther, kTransfer, kCollective };
  Kind kind = kForward;
  int chunk = -1, microbatch = -1;
  double begin = 0, end = 0;
  std::string what;  // "F0.3", "recv act.0 mb3 <- stage 0": for people
};

struct Timeline {
  std::string title;         // "1f1b, 4 microbatches on 2 stages"
  std::string source;        // "planned: forward 1, backward 2", "measured: step 12 of trace.json"
  bool seconds = false;      // else units
  bool many_chunks = false;  // labels say chunk.microbatch
  std::vector<std::string> rows;
  std::vector<std::vector<TimelineSpan>> spans;  // per row, by begin
  double begin = 0, end = 0;                     // of everything shown
  double pipeline_begin = 0, pipeline_end = 0;   // first to last compute of a microbatch
  double bubble = 0;                             // share, see above
};

struct Durations {
  std::function<double(const Action&, int stage)> action;  // F, B, I, W, update, report, reset
  std::function<double(const Action& send, int stage)> transfer;
  std::string source = "planned: forward 1, backward 2";
  bool seconds = false;
};
Durations UnitDurations();
// Sum over the nodes of each function by the roofline of the target.
Durations CostDurations(const Program& program, const cost::Target& target);

// Plays the resolved actions of `name` (or the table, before they are resolved): a stage does one thing at a
// time, a receive waits for its send, an update that reduces over stages waits for them. Sending costs the
// sender nothing. Empty without a schedule, and cut short where the schedule cannot go on.
Timeline PlanTimeline(const Program& program, const Durations& durations = UnitDurations(),
                      const std::string& name = "train_step");

struct TraceOptions {
  int step = -1;      // which step of the trace; -1: the last one that is whole
  int max_rows = 32;  // with more ranks than this, the first rank of each stage stands for its stage
};
// From a Chrome trace as the runtime writes it: pid = rank, tid 2 = pipeline actions, tid 1 = communication.
// Errors: InvalidArgument for something else than that, NotFound for a step that the trace does not hold.
absl::StatusOr<Timeline> MeasuredTimeline(absl::string_view chrome_trace, const Mesh& mesh,
                                          const TraceOptions& options = {});

// Fills in begin .. bubble from the spans.
void Measure(Timeline* timeline);

// One row of cells a stage, at most 100 columns; "." is idle. Empty without spans.
std::string TimelineText(const Timeline& timeline);

// A picture: one row a stage or rank, kinds in hues that also differ in lightness and pattern, microbatch
// numbers in the cells, bubbles hatched, communication as a thin lane below, legend, time axis.
std::string TimelineSvg(const Timeline& timeline);

}  // namespace moe::inspect
