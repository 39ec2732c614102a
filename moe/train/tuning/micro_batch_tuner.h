// Chooses among plans that do the same work in microbatches of different sizes, by how long their steps took:
// a step's time has the stages' work, the exchanges and the bubble in it, as they are on this machine now.
//
//   MicroBatchTuner tuner(plans, /*first=*/1, /*interval=*/200);
//   if (tuner.meters()) meter.Start();
//   seconds = RunStep(plans[tuner.plan()]);
//   if (tuner.Record(seconds, times)) Say(tuner.Describe());
//
// A round runs the present plan and the one of the size farthest from it, a few times each. From what their
// stages computed and exchanged it predicts the steps of the others (step_times.h), and runs those that might
// be the fastest, the most promising first, predicting anew after each. What is never run cannot be chosen:
// the fastest by median of its steps is kept, and the present one stays unless another is more than 3%
// faster. Every `interval` steps there is a new round. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "moe/train/tuning/step_times.h"

namespace moe::train {

class MicroBatchTuner {
 public:
  static constexpr int kWarmUp = 1;    // steps of a plan that are not counted: caches, first touches
  static constexpr int kMetered = 1;   // that are measured by stage, and not counted: tracing takes time
  static constexpr int kMeasured = 3;  // and that are
  static constexpr double kMargin = 0.03;
  // A plan is worth running if it is predicted to take at most so much more than the fastest that has run:
  // the prediction is not better than that.
  static constexpr double kDoubt = 0.10;

  struct Plan {
    int64_t micro_batch_size = 1;
    // What a step of it takes if its stages take such times.
    std::function<StepPrediction(const StepTimes&)> play;
  };

  // `interval` 0: measures once. One plan: never measures.
  MicroBatchTuner(std::vector<Plan> plans, int first, int64_t interval);

  int plan() const { return plan_; }  // for the next step
  bool measuring() const { return trial_ >= 0; }
  // The next step is to be measured by stage.
  bool meters() const { return measuring() && steps_ == kWarmUp; }
  // Time of the step that ran with plan(), and of its stages if it was metered. True when a round of
  // measuring has ended with this step, whether or not plan() became another one.
  bool Record(double seconds, const StepTimes& times = {});

  // Of the last round. Seconds of a step; 0 of a plan that was not run.
  double Median(int plan) const;
  // What the fit at its end gives; 0 seconds without one.
  StepPrediction Predicted(int plan) const;
  // "micro_batch_size 1: 95 ms predicted (bubble 4%), not run; 2: 80 ms (79 predicted); 4: 71 ms (kept)", and
  // in a second line what stages were found to take.
  std::string Describe() const;

 private:
  void StartRound();
  int NextTrial() const;  // -1: none is worth it
  void Predict();
  const std::vector<Plan> plans_;
  const int64_t interval_;
  int plan_ = 0, kept_ = 0;
  int trial_ = -1;    // plan that is measured now; -1: none
  int steps_ = 0;     // of the trial
  int64_t held_ = 0;  // steps since the last round
  // Of the round.
  std::vector<std::vector<double>> seconds_;  // [plan][measured step]
  MicroBatchCosts costs_;
  std::vector<StepPrediction> predicted_;
};

}  // namespace moe::train
