#include "moe/train/tuning/step_times.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "moe/base/status_matchers.h"
#include "moe/passes/schedule/bubble.h"
#include "moe/passes/schedule/schedules.h"

namespace moe::train {
namespace {

constexpr int64_t kMs = 1000000;

void Add(runtime::Trace* trace, int64_t rank, const char* name, int lane, runtime::Category category,
         int64_t begin_ms, int64_t end_ms, const std::string* value = nullptr, int microbatch = 0) {
  trace->Add(rank, {name, value, begin_ms * kMs, end_ms * kMs, microbatch, lane, category, 0});
}

Mesh TwoStages(int64_t dp) { return Mesh({{"pp", 2}, {"dp", dp}}); }

// Two stages of two ranks. In stage 0 rank 0 computes 10 ms and waits for rank 1, which computes 14; the
// exchange itself takes 3, of which rank 1 hides 1. The message to stage 1 takes 2 once both ends are there.
TEST(TimesOfTest, TellsComputeFromExchangesFromWaiting) {
  const std::string sum = "sum", part = "part";
  runtime::Trace trace(4);
  for (int64_t rank : {0, 1}) {
    const int64_t computed = rank == 0 ? 10 : 14;
    Add(&trace, rank, "F0.0", 2, runtime::Category::kOther, 0, 17);
    Add(&trace, rank, "math.einsum", 0, runtime::Category::kGemm, 0, computed, &part);
    if (rank == 1) Add(&trace, rank, "math.silu", 0, runtime::Category::kOther, 15, 16, &part);
    Add(&trace, rank, "comm.all_reduce", 1, runtime::Category::kCollective, computed, 17, &sum);
    Add(&trace, rank, "send act.0 mb0 -> stage 1", 2, runtime::Category::kOther, 17, 17);
  }
  for (int64_t rank : {2, 3}) {
    Add(&trace, rank, "recv act.0 mb0 <- stage 0", 2, runtime::Category::kOther, 1, 19);
    Add(&trace, rank, "F1.0", 2, runtime::Category::kOther, 19, 24);
    Add(&trace, rank, "math.einsum", 0, runtime::Category::kGemm, 19, 24, &part);
    Add(&trace, rank, "B1.0", 2, runtime::Category::kOther, 500, 600);  // of another step
  }
  const StepTimes times = TimesOf(trace, TwoStages(2), 0, 100 * kMs);
  ASSERT_EQ(times.actions.size(), 3u);
  const ActionTime& first = times.actions.at({0, "F0"});
  EXPECT_DOUBLE_EQ(first.slowest, 0.015);
  EXPECT_DOUBLE_EQ(first.all, 0.025);
  EXPECT_DOUBLE_EQ(first.exchange, 0.002);
  const ActionTime& second = times.actions.at({1, "F1"});
  EXPECT_DOUBLE_EQ(second.slowest, 0.005);
  EXPECT_DOUBLE_EQ(second.exchange, 0);
  EXPECT_DOUBLE_EQ(times.actions.at({1, "recv"}).exchange, 0.002);
}

TEST(FitLineTest, FindsWhatIsFixedAndStaysAboveZero) {
  const CostLine line = FitLine({{1, 3.0}, {2, 5.0}, {4, 9.0}});
  EXPECT_NEAR(line.fixed, 1, 1e-12);
  EXPECT_NEAR(line.per_sample, 2, 1e-12);
  EXPECT_DOUBLE_EQ(FitLine({{1, 2.0}, {4, 1.0}}).per_sample, 0);
  EXPECT_DOUBLE_EQ(FitLine({{1, 2.0}, {4, 1.0}}).At(8), 1.5);
  EXPECT_DOUBLE_EQ(FitLine({{1, 1.0}, {4, 8.0}}).fixed, 0);
  EXPECT_DOUBLE_EQ(FitLine({{4, 8.0}}).At(1), 2);
}

Program Pipeline(int microbatches, int64_t dp = 1) {
  strategy::Strategy s;
  s.pp = 2;
  s.microbatches = microbatches;
  absl::StatusOr<Schedule> schedule = passes::MakeSchedule(s);
  EXPECT_OK(schedule.status());
  Program p;
  p.module = std::make_unique<Module>();
  p.module->mesh() = TwoStages(dp);
  p.schedule = *std::move(schedule);
  return p;
}

// Of two sizes measured, a third is what the table's own simulation says with the times that are true.
TEST(PlayStepTest, PredictsASizeThatHasNotRun) {
  const auto times = [](double m) {
    StepTimes t;
    for (int stage : {0, 1}) {
      const std::string chunk = std::to_string(stage);
      t.actions[{stage, "F" + chunk}] = {1 + 2 * m, 1 + 2 * m, 0.5 + 0.1 * m};
      t.actions[{stage, "B" + chunk}] = {2 + 4 * m, 2 + 4 * m, 0.5 + 0.3 * m};
    }
    return t;
  };
  MicroBatchCosts costs;
  costs.Add(1, times(1));
  EXPECT_FALSE(costs.fitted());
  costs.Add(4, times(4));
  ASSERT_TRUE(costs.fitted());
  const Program program = Pipeline(8);
  const StepPrediction predicted = PlayStep(program, costs.At(2), 2);
  passes::BubbleTimes true_times;
  true_times.forward = 1.5 + 2.1 * 2;
  true_times.input_grad = true_times.weight_grad = (2.5 + 4.3 * 2) / 2;
  ASSERT_OK_AND_ASSIGN(const passes::BubbleReport want, passes::SimulateTable(program.schedule, true_times));
  EXPECT_NEAR(predicted.seconds, want.makespan, 1e-9);
  EXPECT_NEAR(predicted.bubble, want.bubble, 1e-9);
  EXPECT_THAT(costs.Describe(), ::testing::HasSubstr("measured at 1, 4; of m samples: stage 0: compute "));
}

// Eight ranks on two cores: one stage's idle time is another's, so there is no bubble, and the step takes all
// work over all cores.
TEST(PlayStepTest, RanksThatShareCoresHaveNoBubble) {
  StepTimes t;
  for (int stage : {0, 1}) {
    const std::string chunk = std::to_string(stage);
    t.actions[{stage, "F" + chunk}] = {1, 4, 0};
    t.actions[{stage, "B" + chunk}] = {2, 8, 0};
  }
  const Program program = Pipeline(4, 4);
  const StepPrediction own = PlayStep(program, t, 8), shared = PlayStep(program, t, 2);
  EXPECT_NEAR(own.seconds, 3 * (4 + 1), 1e-9);
  EXPECT_NEAR(own.bubble, 0.2, 1e-9);
  EXPECT_NEAR(shared.seconds, 2 * 12 * 4 / 2, 1e-9);
  EXPECT_NEAR(shared.bubble, 0, 1e-9);
}

}  // namespace
}  // namespace moe::train
