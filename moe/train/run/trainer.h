// Trainer: the loop around a Session. Data in, reports out, learning rate, evaluation, checkpoints, and what
// happens when a step is not finite.
//
//   Trainer trainer(config, module, &session, data.get(), {.run_dir = "runs/7"});
//   RETURN_IF_ERROR(session.InitializeState(seed));         // or trainer.Resume("runs/6")
//   ASSIGN_OR_RETURN(TrainResult result, trainer.Train());
//   ASSIGN_OR_RETURN(double loss, trainer.Evaluate());
//
// A step whose loss or gradient is not finite changes no weights (the compiled update sees to that on all
// ranks) and does not move the learning rate's schedule; it is counted, and after
// TrainConfig::max_consecutive_skips of them in a row training stops with an error. In f16 the loss scale shrinks
// with such steps, and while it still can, gradients that overflow are no reason to stop. Where a run stands is (step, consumed samples, skips,
// loss scale) and nothing else, so an interrupted run that resumes goes on bitwise as if it had not been
// interrupted.
//
// Session, module and data outlive the trainer. One thread; only `stop` may be set from elsewhere.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/ir/graph.h"
#include "moe/runtime/session.h"
#include "moe/train/checkpoint/checkpoint.h"
#include "moe/train/config/config.h"
#include "moe/train/data/data.h"
#include "moe/train/data/line_data.h"
#include "moe/train/run/loss_scale.h"
#include "moe/train/run/metrics.h"
#include "moe/train/tuning/micro_batch_tuner.h"
#include "moe/train/tuning/step_times.h"

namespace moe::train {

// A session, and in how many microbatches it takes a step's samples.
struct StepPlan {
  runtime::Session* session = nullptr;
  int64_t microbatches = 1;
  int64_t micro_batch_size = 1;
  StepMeter* meter = nullptr;  // of the session; needed where a bucket has several plans
};

// What trains on the samples of one length: plans that do the same work over the same state, in microbatches
// of different sizes. Where there are several, MicroBatchTuner moves among them.
struct StepBucket {
  int64_t seq_length = 0, global_batch = 0;
  double flops_per_step = 0;  // of the model; see ModelFlopsPerToken. 0: TFLOP/s is not known
  std::vector<StepPlan> plans;
  int first_plan = 0;
};

struct TrainerOptions {
  std::string run_dir;  // metrics.jsonl and checkpoint/ go here; "": nothing is written
  // Of several processes that train together one writes; the others know where.
  bool writes = true;
  std::function<void(const StepMetrics&)> progress;  // every log_interval steps, and for the last
  std::function<void(int64_t step, double held_out_loss)> evaluated;
  // Around every step, with its number; for tracing.
  std::function<void(int64_t step)> before_step, after_step;
  // After a round of measuring micro-batch sizes of a bucket.
  std::function<void(int bucket, const MicroBatchTuner& tuner)> tuned;
  const std::atomic<bool>* stop = nullptr;  // set: the step is finished, a checkpoint saved, training ends
  int64_t devices = 1;
  double peak_flops = 0;        // FLOP/s of a device at most; 0: not known, and no MFU is reported
  int64_t tuning_interval = 0;  // steps between rounds of measuring; 0: one round
};

struct TrainResult {
  int64_t first_step = 0, last_step = 0;  // (first_step, last_step] were run
  bool interrupted = false;
  double seconds = 0;            // in steps, without evaluation and checkpoints
  double tokens_per_second = 0;  // of the same
  std::vector<double> losses;    // of each step
  std::string checkpoint;        // the last one saved; empty without run_dir
};

class Trainer {
 public:
  // One bucket for each length of the data; all sessions share one state, which `module` describes.
  Trainer(const RunConfig& resolved, const Module& module, std::vector<StepBucket> buckets,
          const Dataset* data, TrainerOptions options = {});
  // For data of one length.
  Trainer(const RunConfig& resolved, const Module& module, runtime::Session* session, const Dataset* data,
          TrainerOptions options = {});

  // Continues from a checkpoint, a folder of them, or a run directory. FailedPrecondition for another model,
  // text or seed.
  absl::Status Resume(const std::string& path);
  // Weights only, for evaluation: any text will do.
  absl::Status LoadWeights(const std::string& path);

  // Steps up to train_iters, then saves. An error names the step.
  absl::StatusOr<TrainResult> Train();

  // Mean loss in nats per token over held-out text; `samples` 0: as configured. State is left as
  // it is. Cancelled if `stop` is set meanwhile.
  absl::StatusOr<double> Evaluate(int64_t samples = 0);

  // Saves a checkpoint of the present step and gives its folder.
  absl::StatusOr<std::string> Save();

  int64_t step() const { return meta_.step; }
  const CheckpointMeta& meta() const { return meta_; }
  const std::string& last_checkpoint() const { return last_checkpoint_; }

  // Batch and scalars of the next step, as Train() would use them.
  absl::StatusOr<runtime::StepInputs> NextInputs() const;

 private:
  struct Next {  // the step that is to come
    int bucket = 0;
    int64_t first = 0;  // of its samples, among those of its length
  };
  Next NextStep() const;
  const StepPlan& PlanOf(int bucket) const;
  static MicroBatchTuner TunerOf(const StepBucket& bucket, int64_t interval);
  static runtime::StepInputs InputsOf(const Batch& batch, int64_t microbatches, double* valid);
  absl::StatusOr<StepMetrics> Step();
  bool Stopped() const { return options_.stop != nullptr && options_.stop->load(); }

  const RunConfig config_;
  const Module& module_;
  const std::vector<StepBucket> buckets_;
  std::vector<MicroBatchTuner> tuners_;  // of each bucket
  mutable BucketOrder order_;
  const Dataset* const data_;
  const TrainerOptions options_;
  CheckpointMeta meta_;
  std::optional<LossScale> loss_scale_;  // of f16
  std::string last_checkpoint_;
};

}  // namespace moe::train
