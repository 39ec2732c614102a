// When each stage (or rank) does what in one training step: planned, from durations of the actions, or
// measured, from the trace of a run.
//
//   Timeline seconds = EstimatedTimeline(program, cost::Target());   // by the cost model
//   Timeline units = PlanTimeline(program);                          // forward 1, backward 2
//   ASSIGN_OR_RETURN(Timeline measured, MeasuredTimeline(trace_json, mesh, {.step = -1}));
//   std::cout << TimelineText(measured);
//   RETURN_IF_ERROR(WriteFile("timeline.svg", TimelineSvg(measured)));
//
// What a timeline's bubble is, cost::StepTimeline says; every figure of a plan's bubble is that of its
// EstimatedTimeline. Values, no ownership; thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/base/json_reader.h"
#include "moe/cost/play_actions.h"
#include "moe/cost/target.h"
#include "moe/ir/program.h"

namespace moe::inspect {

using TimelineSpan = cost::StepSpan;

struct Timeline : cost::StepTimeline {
  std::string title;         // "1f1b, 4 microbatches on 2 stages"
  std::string source;        // "planned: forward 1, backward 2", "measured: step 12 of trace.json"
  bool seconds = false;      // else units
  bool many_chunks = false;  // labels say chunk.microbatch
  std::vector<std::string> rows;
};

// What cost::PlayActions makes of `name`.
Timeline PlanTimeline(const Program& program, const cost::Durations& durations = cost::UnitDurations(),
                      const std::string& name = "train_step");
// Of the training step, by the costs of its nodes on the target.
Timeline EstimatedTimeline(const Program& program, const cost::Target& target);

struct TraceOptions {
  int step = -1;      // which step of the trace; -1: the last one that is whole
  int max_rows = 32;  // with more ranks than this, the first rank of each stage stands for its stage
};
// What a trace may hold at most. Only spans are kept of it, which take less than their text.
inline constexpr JsonLimits kTraceLimits = {
    .bytes = int64_t{1} << 29, .values = 100'000'000, .string_bytes = 1 << 16, .depth = 8};

// From a Chrome trace as the runtime writes it: pid = rank, tid 2 = pipeline actions, tid 1 = communication.
// Errors: InvalidArgument for something else than that, with the byte, or ranks that the mesh has not; NotFound for a step that the trace does not hold.
absl::StatusOr<Timeline> MeasuredTimeline(absl::string_view chrome_trace, const Mesh& mesh,
                                          const TraceOptions& options = {});

// One row of cells a stage, at most 100 columns; "." is idle. Empty without spans.
std::string TimelineText(const Timeline& timeline);

// A picture: one row a stage or rank, kinds in hues that also differ in lightness and pattern, microbatch
// numbers in the cells, bubbles hatched, communication as a thin lane below, legend, time axis.
std::string TimelineSvg(const Timeline& timeline);

}  // namespace moe::inspect
