#include "moe/train/micro_batch_tuner.h"

#include <gtest/gtest.h>

#include <vector>

namespace moe {
namespace {

// Steps until the end of the next round, with the time that each plan takes.
int64_t RunRound(MicroBatchTuner& tuner, const std::vector<double>& seconds) {
  for (int64_t step = 1; step < 1000; ++step) {
    if (tuner.Record(seconds[tuner.plan()])) return step;
  }
  return -1;
}

TEST(MicroBatchTuner, KeepsTheFastestAndMeasuresAgain) {
  MicroBatchTuner tuner(3, 0, 10);
  EXPECT_EQ(RunRound(tuner, {1.0, 0.8, 1.2}), 3 * (MicroBatchTuner::kWarmUp + MicroBatchTuner::kMeasured));
  EXPECT_EQ(tuner.plan(), 1);
  EXPECT_DOUBLE_EQ(tuner.Median(2), 1.2);
  EXPECT_EQ(RunRound(tuner, {1.0, 0.8, 0.4}), 10 + 12);  // the machine has changed
  EXPECT_EQ(tuner.plan(), 2);
}

TEST(MicroBatchTuner, StaysWhereItIsForASmallGain) {
  MicroBatchTuner tuner(2, 1, 0);
  RunRound(tuner, {0.98, 1.0});
  EXPECT_EQ(tuner.plan(), 1);
  EXPECT_EQ(RunRound(tuner, {0.1, 1.0}), -1);  // interval 0: once
}

TEST(MicroBatchTuner, OneSlowStepDoesNotDecide) {
  MicroBatchTuner tuner(2, 0, 0);
  const std::vector<double> times = {9, 1.0, 1.0, 50.0, 9, 2.0, 2.0, 2.0};
  for (double t : times) tuner.Record(t);
  EXPECT_FALSE(tuner.measuring());
  EXPECT_EQ(tuner.plan(), 0);
}

TEST(MicroBatchTuner, OnePlanIsNeverMeasured) {
  MicroBatchTuner tuner(1, 0, 5);
  EXPECT_FALSE(tuner.measuring());
  EXPECT_EQ(RunRound(tuner, {1.0}), -1);
}

}  // namespace
}  // namespace moe
