#include "moe/train/run/metrics.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "moe/base/status_matchers.h"
#include "moe/train/run/learning_rate.h"
#include "nlohmann/json.hpp"

namespace moe::train {
namespace {

StepMetrics Example() {
  return {.iteration = 10,
          .train_iters = 100,
          .consumed_samples = 320,
          .milliseconds = 181.25,
          .tflops_per_device = 0.0625,
          .learning_rate = 0.001,
          .global_batch_size = 32,
          .lm_loss = 2.41,
          .grad_norm = 0.92,
          .skipped_iterations = 1,
          .nan_iterations = 0,
          .tokens_per_second = 1234567,
          .has_experts = true,
          .load_max_over_mean = 1.08,
          .dropped = 0.0012,
          .aux_loss = 1.01};
}

TEST(ProgressLineTest, IsWhatLogParsersExpect) {
  const absl::TimeZone utc = absl::UTCTimeZone();
  const absl::Time now = absl::FromCivil(absl::CivilSecond(2025, 1, 1, 0, 0, 0), utc);
  EXPECT_EQ(
      ProgressLine(Example(), now, utc),
      " [2025-01-01 00:00:00] iteration       10/     100 | consumed samples:          320 |"
      " elapsed time per iteration (ms): 181.2 | throughput per GPU (TFLOP/s/GPU): 0.0625 |"
      " learning rate: 1.000000E-03 | global batch size:    32 | lm loss: 2.410000E+00 | grad norm: 0.920 |"
      " number of skipped iterations:   1 | number of nan iterations:   0 |"
      " tok/s: 1,234,567 | ETA: 00:16 | load max/mean: 1.08 | dropped: 0.1% | aux loss: 1.010 |");
}

TEST(ShowDurationTest, Shows) {
  EXPECT_EQ(ShowDuration(91), "01:31");
  EXPECT_EQ(ShowDuration(7384), "2:03:04");
  EXPECT_EQ(ShowDuration(std::nan("")), "?");
}

TEST(MetricsJsonTest, IsJsonAndKeepsEveryBit) {
  StepMetrics m = Example();
  m.lm_loss = 0.1 + 0.2;
  nlohmann::json json = nlohmann::json::parse(MetricsJson(m));
  EXPECT_EQ(json["kind"], "train");
  EXPECT_EQ(json["iteration"], 10);
  EXPECT_EQ(json["lm_loss"].get<double>(), 0.1 + 0.2);
  EXPECT_EQ(json["aux_loss"].get<double>(), 1.01);
  m.lm_loss = std::numeric_limits<double>::quiet_NaN();
  m.grad_norm = std::numeric_limits<double>::infinity();
  m.has_experts = false;
  json = nlohmann::json::parse(MetricsJson(m));
  EXPECT_TRUE(json["lm_loss"].is_null());
  EXPECT_TRUE(json["grad_norm"].is_null());
  EXPECT_FALSE(json.contains("aux_loss"));
  json = nlohmann::json::parse(EvaluationJson(7, std::log(4.0)));
  EXPECT_EQ(json["kind"], "eval");
  EXPECT_NEAR(json["bits_per_byte"].get<double>(), 2, 1e-12);
}

TEST(SummaryTest, SaysWhatTheRunHas) {
  RunSummary summary;
  summary.step = 4;
  EXPECT_EQ(SummaryJson(summary), R"({"kind":"summary","step":4})");
  summary.held_out = RunSummary::HeldOut{std::log(4.0), 2.5};
  summary.sample = "\"the\"  ->  \"\xff\"";
  RunSummary::Training training;
  training.shares = {{"compute", 0.75}, {"collective", 0.25}};
  training.hidden_communication = 0.5;
  training.planned_peak_bytes = training.measured_peak_bytes = {64, 128};
  training.run_dir = "runs/7";
  summary.training = training;
  const nlohmann::json json = nlohmann::json::parse(SummaryJson(summary));
  EXPECT_NEAR(json["bits_per_byte"].get<double>(), 2, 1e-12);
  EXPECT_EQ(json["bigram_loss"], 2.5);
  EXPECT_EQ(json["sample"], "\"the\"  ->  \"\xef\xbf\xbd\"");
  EXPECT_EQ(json["shares"]["compute"], 0.75);
  EXPECT_EQ(json["hidden_communication"], 0.5);
  EXPECT_EQ(json["measured_peak_bytes"], json["planned_peak_bytes"]);
  EXPECT_EQ(json["run_dir"], "runs/7");
}

TEST(MetricsWriterTest, ResumingDropsLinesOfTheLostSteps) {
  const std::string path = JoinPath(::testing::TempDir(), "metrics.jsonl");
  StepMetrics m = Example();
  {
    ASSERT_OK_AND_ASSIGN(MetricsWriter writer, MetricsWriter::Open(path, 0));
    for (m.iteration = 1; m.iteration <= 5; ++m.iteration) ASSERT_OK(writer.Write(m));
    ASSERT_OK(writer.WriteEvaluation(5, 2));
    ASSERT_OK(writer.Close());
  }
  ASSERT_OK_AND_ASSIGN(std::string text, ReadFile(path));
  ASSERT_OK(WriteFile(path, text + "{\"kind\":\"train\",\"iter"));  // the process died here
  m.iteration = 4;
  {
    ASSERT_OK_AND_ASSIGN(MetricsWriter writer, MetricsWriter::Open(path, 3));
    ASSERT_OK(writer.Write(m));
    ASSERT_OK(writer.Close());
  }
  ASSERT_OK_AND_ASSIGN(const std::string resumed, ReadFile(path));
  std::string want;
  for (m.iteration = 1; m.iteration <= 4; ++m.iteration) want += MetricsJson(m) + "\n";
  EXPECT_EQ(resumed, want);
  ExpectError(MetricsWriter::Open("/no/such/folder/m.jsonl", 0), absl::StatusCode::kNotFound,
              "/no/such/folder");
}

TEST(LearningRateTest, WarmsUpAndDecays) {
  const LearningRateSchedule s{.peak = 1, .floor = 0.1, .warmup = 10, .total = 110};
  EXPECT_DOUBLE_EQ(LearningRate(s, 1), 0.1);
  EXPECT_DOUBLE_EQ(LearningRate(s, 10), 1);
  EXPECT_DOUBLE_EQ(LearningRate(s, 60), 0.55);
  EXPECT_DOUBLE_EQ(LearningRate(s, 110), 0.1);
  EXPECT_DOUBLE_EQ(LearningRate(s, 500), 0.1);
  for (int64_t i = 11; i <= 110; ++i) EXPECT_LT(LearningRate(s, i), LearningRate(s, i - 1)) << i;
  EXPECT_DOUBLE_EQ(LearningRate({.peak = 1, .floor = 0, .warmup = 0, .total = 2}, 1), 0.5);
  EXPECT_DOUBLE_EQ(LearningRate({.peak = 1, .floor = 0, .warmup = 5, .total = 5}, 5), 1);  // warm-up only
}

}  // namespace
}  // namespace moe::train
