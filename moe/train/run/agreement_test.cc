#include "moe/train/run/agreement.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "moe/base/status_matchers.h"

namespace moe::train {
namespace {

RunConfig Config() {
  RunConfig config;
  config.set_strategy("dp=2 ep=2");
  config.mutable_train()->set_lr(0.001);
  config.mutable_train()->set_run_dir("runs/mine");
  config.mutable_train()->set_data_path("/scratch/0/text");
  config.mutable_train()->set_resume("/scratch/0/run");
  config.mutable_model()->set_hidden_size(64);
  return config;
}

std::vector<Fact> FactsOf(const RunConfig& config, const std::string& text) {
  std::vector<Fact> facts = ConfigFacts(config);
  facts.push_back({"training text", text, "text.txt (" + text + ")"});
  return facts;
}

TEST(Agreement, WhereThingsLieMayDiffer) {
  RunConfig other = Config();
  other.mutable_train()->set_run_dir("");
  other.mutable_train()->set_data_path("/scratch/1/text");
  other.mutable_train()->set_resume("/scratch/1/run");
  EXPECT_OK(CompareFacts({FactsOf(Config(), "byte-1"), FactsOf(other, "byte-1")}));
}

TEST(Agreement, WhatDiffersIsNamedWithItsValuesAndProcesses) {
  RunConfig other = Config();
  other.mutable_train()->set_lr(0.01);
  other.mutable_train()->set_weight_decay(0.5);
  other.mutable_model()->set_hidden_size(128);
  const absl::Status s = CompareFacts({FactsOf(Config(), "byte-1"), FactsOf(other, "byte-1"),
                                       FactsOf(Config(), "byte-2"), FactsOf(other, "byte-1")});
  ExpectError(
      s, absl::StatusCode::kFailedPrecondition, "nothing was trained",
      "\n       lr: 0.001 in processes 0, 2; "
      "0.01 in processes 1, 3",
      "\n       hidden_size: 64 in processes 0, 2; 128 in processes 1, 3",
      "\n       weight_decay: not set in processes 0, 2; 0.5 in processes 1, 3",
      "\n       training text: text.txt (byte-1) in processes 0, 1, 3; text.txt (byte-2) in process 2");
  EXPECT_THAT(std::string(s.message()), ::testing::Not(::testing::HasSubstr("strategy")));
}

TEST(Agreement, OfManyDifferencesTheFirstAreNamed) {
  std::vector<Fact> one, two;
  for (int i = 0; i < 40; ++i) {
    one.push_back({"option" + std::to_string(i), "1", ""});
    two.push_back({"option" + std::to_string(i), "2", ""});
  }
  ExpectError(CompareFacts({one, two}), absl::StatusCode::kFailedPrecondition, "option11: ", "and 28 more");
}

TEST(Agreement, AProgramHasABuildId) {
  EXPECT_GE(ProgramFact().value.size(), 16);
  EXPECT_EQ(ProgramFact().value, ProgramFact().value);
}

TEST(Agreement, WithoutAResumeThereIsNoCheckpoint) {
  ASSERT_OK_AND_ASSIGN(const Fact none, CheckpointFact(""));
  EXPECT_EQ(none.value, "none");
  EXPECT_FALSE(CheckpointFact("/no/such/folder").ok());
}

}  // namespace
}  // namespace moe::train
