// Chooses among plans that do the same work in microbatches of different sizes, by how long their steps took:
// a step's time has the stages' work, the exchanges and the bubble in it, as they are on this machine now.
//
//   MicroBatchTuner tuner(/*plans=*/3, /*first=*/1, /*interval=*/200);
//   seconds = RunStep(plans[tuner.plan()]);
//   if (tuner.Record(seconds)) Say(tuner.plan(), tuner.Median(tuner.plan()));
//
// Every `interval` steps it runs each plan a few times and keeps the fastest by median; the present one stays
// unless another is more than 3% faster. Not thread-safe.
#pragma once

#include <cstdint>
#include <vector>

namespace moe {

class MicroBatchTuner {
 public:
  static constexpr int kWarmUp = 1;    // steps of a plan that are not counted: caches, first touches
  static constexpr int kMeasured = 3;  // and that are
  static constexpr double kMargin = 0.03;

  // `interval` 0: measures once. One plan: never measures.
  MicroBatchTuner(int plans, int first, int64_t interval);

  int plan() const { return plan_; }  // for the next step
  bool measuring() const { return trial_ >= 0; }
  // Time of the step that ran with plan(). True when a round of measuring has ended with this step, whether
  // or not plan() became another one.
  bool Record(double seconds);
  double Median(int plan) const;  // seconds, of the last round; 0 before it

 private:
  void StartRound();
  const int plans_;
  const int64_t interval_;
  int plan_ = 0, kept_ = 0;
  int trial_ = -1;                            // plan that is measured now; -1: none
  int steps_ = 0;                             // of the trial
  int64_t held_ = 0;                          // steps since the last round
  std::vector<std::vector<double>> seconds_;  // [plan][measured step]
};

}  // namespace moe
