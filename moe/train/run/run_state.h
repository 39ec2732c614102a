// RunState: what a run knows so far. Its phases follow each other (check, plan, open, train, report); each
// reads what the ones before it found and adds its own. Private to run.cc and report.cc.
//
//   RunState run(config, options, std::cout, meeting);
//   ...  // the phases before
//   RETURN_IF_ERROR(Report(run));
//
// Owns all but `options`, `meeting` and the stream, which outlive it. One thread.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "moe/comm/device_worlds.h"
#include "moe/kernels/kernel.h"
#include "moe/runtime/executor.h"
#include "moe/train/config/config.h"
#include "moe/train/data/line_data.h"
#include "moe/train/run/process_group.h"
#include "moe/train/run/run.h"
#include "moe/train/run/run_folder.h"
#include "moe/train/run/speaker.h"
#include "moe/train/run/step_tracer.h"
#include "moe/train/run/trainer.h"
#include "moe/train/tuning/plan_search.h"
#include "moe/train/tuning/step_times.h"

namespace moe::train {

// Where ranks live and how they meet. Outlives the executors: connections last until all processes are done,
// and a rank that hangs may still use them.
struct Meeting {
  std::unique_ptr<ProcessGroup> group;  // of several processes
  std::unique_ptr<comm::DeviceWorlds> devices;
  bool begun = false;  // errors from here on are those of a step
};

struct RunState {
  RunState(const RunConfig& config, const RunOptions& options, std::ostream& out, Meeting& meeting)
      : options(options),
        train(config.train()),
        leads(options.job == nullptr || options.job->rank() == 0),
        meeting(meeting),
        speaker(out, options.voice),
        config(config) {}
  ~RunState() {
    if (meeting.group != nullptr) meeting.group->StopReporting();  // which asks the executors
  }

  const absl::Time start = absl::Now();
  const RunOptions& options;
  const TrainConfig train;  // as it was given; the plan may change `config`
  const bool leads;         // speaks and writes
  Meeting& meeting;
  Speaker speaker;

  // Check.
  std::optional<RunFolder> folder;  // claimed by the process that writes
  bool continues = false;           // what is in that folder; what else is there does not count
  std::string from;                 // the checkpoint that the run goes on from; empty: it begins
  RunConfig config;
  std::vector<int64_t> lengths;  // of samples
  std::unique_ptr<Dataset> data;
  std::string dir;  // the run directory; empty if nothing is written

  // Plan.
  kernels::Backend backend = kernels::Backend::kCpu;
  PlannedRun planned;
  const PlannedStep& main_plan() const { return planned.buckets[0].plans[planned.buckets[0].first]; }
  const Module& module() const { return *main_plan().compiled.plan.program.module; }

  // Open.
  std::vector<std::unique_ptr<runtime::Executor>> owned;  // that of the main plan first; all in its memory
  std::vector<runtime::Executor*> executors;              // the same
  std::vector<std::unique_ptr<StepMeter>> meters;
  std::vector<StepBucket> buckets;
  double peak_flops = 0;  // of a device; 0: not known

  // Train.
  std::optional<StepTracer> tracer;
  std::optional<Trainer> trainer;
  TrainResult result;

  bool stopped = false;  // by the user, who has been told

  // Samples are lines of a text, of several lengths.
  bool by_lines() const { return !train.length_buckets().empty(); }
};

// What the ranks did last, beside the error of a step that ended the run.
absl::Status Explain(RunState& run, const absl::Status& status);

// Evaluation, sample, memory, trace, and what is in the run directory. Returns early if the user stops it.
absl::Status Report(RunState& run);

}  // namespace moe::train
