#include "moe/train/run/resume_check.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "moe/base/status_matchers.h"
#include "moe/model/config.h"
#include "moe/train/data/data.h"
#include "moe/train/data/line_data.h"

namespace moe::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// Lines for every length that is asked for.
std::string Text(int seed) {
  std::string text;
  for (int i = 0; i < 400; ++i)
    absl::StrAppend(&text, std::string(4 + i % 24, 'a' + (seed + i * i) % 26), "\n");
  return text;
}

std::string Fingerprint(const RunConfig& config, int text) {
  const TrainConfig& t = config.train();
  const TextOptions options = {.path = t.data_path(),
                               .held_out = t.held_out_fraction(),
                               .seq_length = config.model().seq_length(),
                               .seed = t.seed()};
  if (t.length_buckets().empty()) return (*TextDataset::FromText(Text(text), options))->Fingerprint();
  return (*LineDataset::FromText(Text(text), options, *LengthsOf(config)))->Fingerprint();
}

RunConfig Config() {
  RunConfig config = DefaultRunConfig();
  config.mutable_model()->set_seq_length(16);
  config.mutable_train()->set_data_path("a.txt");
  return ResolveRunConfig(config);
}

// What the check says of a run that saved under one configuration and goes on under another.
absl::Status Check(const RunConfig& before, const RunConfig& after, int text_before = 1, int text_after = 1,
                   absl::string_view batches_before = "", absl::string_view batches_after = "",
                   bool planned = true) {
  const CheckpointMeta saved = {
      .model_config = model::ModelConfigToText(before.model()),
      .run_config = RunConfigToText(before),
      .step = 4,
      .seed = before.train().seed(),
      .data_fingerprint = Fingerprint(before, text_before) + std::string(batches_before)};
  return CheckResume(saved, after, Fingerprint(after, text_after) + std::string(batches_after), planned);
}

TEST(ResumeCheckTest, WhatDiffersIsNamedAndNothingElse) {
  const RunConfig before = Config();
  EXPECT_OK(Check(before, before));
  struct Case {
    std::function<void(RunConfig&)> change;
    int text;
    std::string said;
  };
  const Case cases[] = {
      {[](RunConfig& c) { c.mutable_model()->set_seq_length(32); }, 1,
       "seq_length: checkpoint 16, this run 32"},
      {[](RunConfig& c) { c.mutable_train()->set_seed(7); }, 1, "seed: checkpoint 1, this run 7"},
      {[](RunConfig& c) { c.mutable_train()->set_held_out_fraction(0.1); }, 1,
       "held_out_fraction: checkpoint 0.05, this run 0.1"},
      {[](RunConfig& c) { c.mutable_model()->set_num_experts(4); }, 1,
       "num_experts: checkpoint 8, this run 4"},
      {[](RunConfig& c) { c.mutable_train()->set_length_buckets("8,16"); }, 1,
       "length_buckets: checkpoint windows of 16 tokens, this run lines of 8, 16 tokens"},
      {[](RunConfig& c) { c.mutable_model()->set_dtype("f64"); }, 1, "dtype: checkpoint f32, this run f64"},
      {[](RunConfig& c) { c.mutable_train()->set_data_path("b.txt"); }, 2,
       "data_path: b.txt is not the text that the checkpoint was trained on, which was a.txt"},
      {[](RunConfig&) {}, 2, "data_path: a.txt is not the text that the checkpoint was trained on\n"},
  };
  for (const Case& c : cases) {
    RunConfig after = before;
    c.change(after);
    // Before the run is planned, too.
    EXPECT_FALSE(Check(before, after, 1, c.text, "", "", /*planned=*/false).ok()) << c.said;
    const absl::Status status = Check(before, after, 1, c.text, "", c.said[0] == 'l' ? "-32-16" : "");
    ExpectError(status, absl::StatusCode::kFailedPrecondition, "1 setting is", c.said);
  }
  // The same text under another name is the same text.
  RunConfig moved = before;
  moved.mutable_train()->set_data_path("elsewhere/a.txt");
  EXPECT_OK(Check(before, moved));
}

TEST(ResumeCheckTest, AllDifferencesAtOnce) {
  const RunConfig before = Config();
  RunConfig after = before;
  after.mutable_model()->set_seq_length(32);
  after.mutable_model()->set_hidden_size(64);
  after.mutable_train()->set_seed(7);
  after.mutable_train()->set_held_out_fraction(0.25);
  ExpectError(Check(before, after, 1, 2), absl::StatusCode::kFailedPrecondition, "5 settings are",
              "hidden_size", "seed", "seq_length", "held_out_fraction", "data_path");
  // Weights of the same model can at least be evaluated.
  after.mutable_model()->set_hidden_size(before.model().hidden_size());
  EXPECT_THAT(Check(before, after).message(), HasSubstr("--eval_only"));
}

TEST(ResumeCheckTest, SeveralLengths) {
  RunConfig before = Config();
  before.mutable_train()->set_length_buckets("8,16,32");
  EXPECT_OK(Check(before, before, 1, 1, "-32-16-8", "-32-16-8"));
  EXPECT_OK(Check(before, before, 1, 1, "-32-16-8", "", /*planned=*/false));
  ExpectError(Check(before, before, 1, 1, "-32-16-8", "-32-16-4"), absl::StatusCode::kFailedPrecondition,
              "samples in a step of each length: checkpoint 32, 16, 8, this run 32, 16, 4");
  RunConfig after = before;
  after.mutable_train()->set_global_batch_size(64);
  ExpectError(Check(before, after, 1, 1, "-32-16-8", "-64-32-16"), absl::StatusCode::kFailedPrecondition,
              "1 setting", "global_batch_size");
  ExpectError(Check(before, after, 1, 1, "-32-16-8", "", false), absl::StatusCode::kFailedPrecondition,
              "global_batch_size");
  after = before;
  after.mutable_train()->set_length_buckets("8,24");
  for (const bool planned : {false, true}) {
    ExpectError(Check(before, after, 1, 1, "-32-16-8", planned ? "-32-11" : "", planned),
                absl::StatusCode::kFailedPrecondition,
                "length_buckets: checkpoint 8, 16, 32, this run 8, 24");
  }
}

CheckpointMeta SavedBy(const RunConfig& config, int64_t step) {
  return {.run_config = RunConfigToText(config), .step = step};
}

TEST(ResumeCheckTest, WhatMayChangeIsSaid) {
  const RunConfig before = Config();
  EXPECT_THAT(ChangedSettings(SavedBy(before, 4), before), IsEmpty());
  RunConfig after = before;
  after.mutable_train()->set_train_iters(600);
  after.mutable_train()->set_run_dir("elsewhere");
  after.mutable_train()->set_log_interval(7);
  after.mutable_model()->set_capacity_factor(2);
  EXPECT_THAT(ChangedSettings(SavedBy(before, 4), after),
              ElementsAre("capacity_factor: 1.25 -> 2", "train_iters: 260 -> 600"));
  SetWords("bf16", after);
  EXPECT_THAT(ChangedSettings(SavedBy(before, 4), after), ::testing::Contains(HasSubstr(" bf16")));
  EXPECT_THAT(ChangedSettings({.run_config = "what"}, after), IsEmpty());
}

TEST(ResumeCheckTest, AChangedLearningRateIsSaid) {
  const RunConfig before = Config();  // 260 steps, down to a tenth
  RunConfig after = before;
  EXPECT_EQ(ChangedLearningRate(SavedBy(before, 260), after), "");
  after.mutable_train()->set_train_iters(520);
  EXPECT_THAT(ChangedLearningRate(SavedBy(before, 260), after),
              HasSubstr("the learning rate of step 261 is 0.0023; by the settings so far it was 0.0004"));
  // Inside the warm-up both are the same.
  EXPECT_EQ(ChangedLearningRate(SavedBy(before, 5), after), "");
  EXPECT_EQ(ChangedLearningRate(SavedBy(before, 520), after), "") << "no step is left";
}

TEST(ResumeCheckTest, AWarmUpThatOutlastsTheRunIsSaid) {
  TrainConfig train = Config().train();
  EXPECT_EQ(WarmUpBeyondTheEnd(train), "");
  train.set_train_iters(train.lr_warmup_iters());
  EXPECT_EQ(WarmUpBeyondTheEnd(train), "") << "it ends at the peak";
  train.set_train_iters(5);
  EXPECT_THAT(WarmUpBeyondTheEnd(train),
              HasSubstr("lr_warmup_iters = 20 is more than the 5 steps: the learning "
                        "rate ends at 0.001 of lr = 0.004"));
}

}  // namespace
}  // namespace moe::train
