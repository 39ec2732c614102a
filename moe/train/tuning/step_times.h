// Where the time of a step goes, stage by stage: measured from a trace, fitted over microbatch sizes, and
// played back for a plan that has not run.
//
//   MicroBatchCosts costs;
//   costs.Add(4, TimesOf(trace_at_4, mesh));
//   costs.Add(1, TimesOf(trace_at_1, mesh));
//   PlayStep(program_at_2, costs.At(2), /*cores=*/8).seconds;   // what a step should take
//
// What an action of the schedule computes and exchanges is taken as a + b m for microbatches of m samples: a
// is what every kernel and message costs however small, b is the work of a sample. The schedule then says how
// often it is paid and what waits for what. Values; not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/ir/program.h"
#include "moe/ir/types.h"
#include "moe/runtime/executor.h"
#include "moe/runtime/trace.h"

namespace moe::train {

// Seconds of one run of an action on its stage.
struct ActionTime {
  double slowest = 0;   // kernels of the rank that computes longest
  double all = 0;       // kernels of all ranks of the stage, added up
  double exchange = 0;  // exchanges that no kernel hides, without waiting for the last rank to come
};

// By stage, then "F0" (kind and chunk), "update", "report"; and "recv", a message that the stage receives.
struct StepTimes {
  std::map<std::pair<int, std::string>, ActionTime> actions;
};

// Means over the actions that began in [from, to) by NowNanos() of process 0; of one step, or of several.
StepTimes TimesOf(const runtime::Trace& trace, const Mesh& mesh, int64_t from = 0, int64_t to = INT64_MAX);

// fixed + per_sample x, neither below 0.
struct CostLine {
  double fixed = 0, per_sample = 0;
  double At(double samples) const { return fixed + per_sample * samples; }
};
// Least squares. One point: all of it per sample.
CostLine FitLine(const std::map<int64_t, double>& points);

class MicroBatchCosts {
 public:
  void Add(int64_t micro_batch_size, StepTimes times) { measured_[micro_batch_size] = std::move(times); }
  // Two sizes tell what is fixed from what grows.
  bool fitted() const { return measured_.size() >= 2; }
  StepTimes At(int64_t micro_batch_size) const;
  // "measured at 1, 4; of m samples: stage 0: compute 0.4 + 2.1 m ms, exchanges 0.3 + 0.6 m ms, and 3.2 ms a
  // step; stage 1: ..." of the slowest rank, a forward and a backward of all chunks together.
  std::string Describe() const;

 private:
  std::map<int64_t, StepTimes> measured_;
};

struct StepPrediction {
  double seconds = 0;
  double bubble = 0;  // share in which stages (or cores, where they are fewer than ranks) have nothing to do
};
// A step of the plan, its stages beside each other in the order of its schedule. With fewer cores (devices)
// than ranks, the ranks of a stage share them, and no step is shorter than all work over all cores.
StepPrediction PlayStep(const Program& program, const StepTimes& times, int64_t cores);

// Takes such times of steps of a plan, and plays others'.
class StepMeter {
 public:
  virtual ~StepMeter() = default;
  virtual void Start() = 0;                      // before a step
  virtual absl::StatusOr<StepTimes> Stop() = 0;  // after it
  virtual StepPrediction Play(const StepTimes& times) const = 0;
};

// Of a plan that an executor runs, by its trace. If it is traced anyway it stays so. Outlived by the
// executor.
class ExecutorMeter : public StepMeter {
 public:
  ExecutorMeter(runtime::Executor* executor, int64_t cores) : executor_(executor), cores_(cores) {}
  void Start() override;
  absl::StatusOr<StepTimes> Stop() override;
  StepPrediction Play(const StepTimes& times) const override {
    return PlayStep(executor_->program(), times, cores_);
  }

 private:
  runtime::Executor* const executor_;
  const int64_t cores_;
  bool starts_ = false;
  absl::Status started_;
  int64_t from_ = 0;
};

}  // namespace moe::train
