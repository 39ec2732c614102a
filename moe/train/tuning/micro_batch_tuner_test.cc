#include "moe/train/tuning/micro_batch_tuner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace moe::train {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kSteps = MicroBatchTuner::kWarmUp + MicroBatchTuner::kMetered + MicroBatchTuner::kMeasured;
constexpr int64_t kSamples = 16;  // of a step

// A machine with a stage: a microbatch of m samples computes `a + b m` seconds and exchanges `c + d m`.
struct Machine {
  double a = 0, b = 0, c = 0, d = 0;
  double extra = 1;  // a step takes so many times what its stage does
  StepTimes Times(int64_t m) const {
    StepTimes t;
    const double compute = a + b * static_cast<double>(m), exchange = c + d * static_cast<double>(m);
    t.actions[{0, "F0"}] = {compute, compute, exchange};
    return t;
  }
  double Step(int64_t m) const {
    return extra * (a + c + (b + d) * static_cast<double>(m)) * kSamples / static_cast<double>(m);
  }
};

std::vector<MicroBatchTuner::Plan> Plans(const std::vector<int64_t>& sizes) {
  std::vector<MicroBatchTuner::Plan> plans;
  for (const int64_t m : sizes) {
    plans.push_back(
        {m, [m](const StepTimes& times) -> StepPrediction {
           const auto it = times.actions.find({0, "F0"});
           if (it == times.actions.end()) return {};
           return {(it->second.slowest + it->second.exchange) * kSamples / static_cast<double>(m), 0};
         }});
  }
  return plans;
}

// Steps until the end of the next round on the machine; and the plans that ran in it.
int64_t RunRound(MicroBatchTuner& tuner, const std::vector<int64_t>& sizes, const Machine& machine) {
  for (int64_t step = 1; step < 1000; ++step) {
    const int64_t m = sizes[tuner.plan()];
    if (tuner.Record(machine.Step(m), tuner.meters() ? machine.Times(m) : StepTimes())) return step;
  }
  return -1;
}

TEST(MicroBatchTuner, RunsOnlyWhatMightBeTheFastest) {
  const std::vector<int64_t> sizes = {1, 2, 4, 8, 16};
  MicroBatchTuner tuner(Plans(sizes), 0, 10);
  // What a microbatch costs however small is what small ones pay most often: 16 is the best, 8 within a tenth
  // of it, and the others are known to be slower without running.
  const Machine fixed = {.a = 0.2, .b = 1, .c = 0.1, .d = 0.2, .extra = 1.5};
  EXPECT_EQ(RunRound(tuner, sizes, fixed), 4 * kSteps);
  EXPECT_EQ(sizes[tuner.plan()], 16);
  EXPECT_GT(tuner.Median(0), 0);
  EXPECT_EQ(tuner.Median(1), 0);
  EXPECT_GT(tuner.Median(2), 0);
  EXPECT_GT(tuner.Median(3), 0);
  for (int p = 0; p < 5; ++p) EXPECT_NEAR(tuner.Predicted(p).seconds, fixed.Step(sizes[p]), 1e-9) << p;
  const std::string said = tuner.Describe();
  EXPECT_THAT(said, HasSubstr("2: 32400.0 ms predicted (bubble 0%), not run"));
  EXPECT_THAT(said, HasSubstr("kept"));
  EXPECT_THAT(said, HasSubstr("measured at 1, 4, 8, 16; of m samples: stage 0: compute 200.0 + 1000.0 m ms, "
                              "exchanges 100.0 + 200.0 m ms"));
}

TEST(MicroBatchTuner, KeepsTheFastestAndMeasuresAgain) {
  const std::vector<int64_t> sizes = {1, 2, 4};
  MicroBatchTuner tuner(Plans(sizes), 0, 10);
  const Machine fixed = {.a = 1, .b = 0.1};
  EXPECT_EQ(RunRound(tuner, sizes, fixed), 2 * kSteps);
  EXPECT_EQ(sizes[tuner.plan()], 4);
  // The machine has changed: all sizes cost the same now, so it stays.
  const Machine linear = {.b = 1};
  EXPECT_EQ(RunRound(tuner, sizes, linear), 10 + 3 * kSteps);
  EXPECT_EQ(sizes[tuner.plan()], 4);
}

// The prediction only says what to run: what is kept is what was fast.
TEST(MicroBatchTuner, MeasuredStepsHaveTheLastWord) {
  const std::vector<int64_t> sizes = {1, 2, 4};
  MicroBatchTuner tuner(Plans(sizes), 0, 0);
  const std::vector<double> seconds = {1.0, 2.0, 1.1};  // 2 is slow for a reason that no stage shows
  const Machine linear = {.b = 1};
  bool ended = false;
  for (int step = 0; step < 3 * kSteps && !ended; ++step) {
    const int p = tuner.plan();
    ended = tuner.Record(seconds[p], tuner.meters() ? linear.Times(sizes[p]) : StepTimes());
  }
  EXPECT_TRUE(ended);
  EXPECT_EQ(tuner.plan(), 0);
  EXPECT_THAT(tuner.Describe(), Not(HasSubstr("not run")));
}

TEST(MicroBatchTuner, StaysWhereItIsForASmallGain) {
  const std::vector<int64_t> sizes = {1, 2};
  MicroBatchTuner tuner(Plans(sizes), 1, 0);
  for (int step = 0; step < 2 * kSteps; ++step) tuner.Record(tuner.plan() == 0 ? 0.98 : 1.0);
  EXPECT_FALSE(tuner.measuring());
  EXPECT_EQ(tuner.plan(), 1);
  EXPECT_EQ(RunRound(tuner, sizes, {.b = 1}), -1);  // interval 0: once
}

TEST(MicroBatchTuner, OneSlowStepDoesNotDecide) {
  MicroBatchTuner tuner(Plans({1, 2}), 0, 0);
  for (double t : {9.0, 9.0, 1.0, 1.0, 50.0, 9.0, 9.0, 2.0, 2.0, 2.0}) tuner.Record(t);
  EXPECT_FALSE(tuner.measuring());
  EXPECT_EQ(tuner.plan(), 0);
}

TEST(MicroBatchTuner, OnePlanIsNeverMeasured) {
  MicroBatchTuner tuner(Plans({1}), 0, 5);
  EXPECT_FALSE(tuner.measuring());
  EXPECT_EQ(RunRound(tuner, {1}, {.b = 1}), -1);
}

}  // namespace
}  // namespace moe::train
