#include "moe/train/config/config.h"

#include <cstdlib>

#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "moe/base/textproto.h"
#include "moe/model/config.h"

namespace moe::train {
namespace {

using ::google::protobuf::util::MessageDifferencer;

std::string WriteConfig(absl::string_view text) {
  const std::string path = JoinPath(::testing::TempDir(), "run.textproto");
  EXPECT_OK(WriteFile(path, text));
  return path;
}

TEST(RunConfigTest, TheDefaultIsTheTinyModelOnEightDevices) {
  const RunConfig config = ResolveRunConfig(DefaultRunConfig());
  ASSERT_OK_AND_ASSIGN(const model::ModelConfig tiny,
                       model::LoadModelConfig("testdata/models/tiny_moe.textproto"));
  EXPECT_EQ(PrintTextproto(config.model()), PrintTextproto(tiny));
  const model::ParameterCount count = model::CountParameters(config.model());
  EXPECT_GE(count.total, 2'000'000);
  EXPECT_LE(count.total, 3'000'000);
  const strategy::Strategy s = StrategyOf(config);
  EXPECT_EQ(s.world(), 8);
  EXPECT_EQ(s.ToString(), "pp=2 dp=2 tp=2 ep=4 sp zero=1 microbatches=4 checkpoint=selective");
  EXPECT_EQ(
      DescribeStrategy(config),
      "8 virtual devices   pp 2 x dp 2 x tp 2, sequence parallel, ZeRO-1   experts: ep 4, edp 1, etp 1   "
      "1F1B, 4 microbatches of 8 x 128");
}

TEST(RunConfigTest, AFileOverlaysEvenWithZeros) {
  RunConfig config = DefaultRunConfig();
  ASSERT_OK(MergeRunConfigFile(WriteConfig("model { aux_loss_coeff: 0 } train { lr: 0.5 }"), config));
  EXPECT_EQ(config.model().aux_loss_coeff(), 0);
  EXPECT_EQ(config.model().num_experts(), 8);
  EXPECT_EQ(config.train().lr(), 0.5);
}

TEST(RunConfigTest, TheSavedTextGivesTheSameRunAgain) {
  RunConfig config = DefaultRunConfig();
  ASSERT_OK(MergeRunConfigFile(WriteConfig("model { z_loss_coeff: 0 num_experts: 0 ffn_hidden_size: 64 } "
                                           "train { lr: 0.1 run_dir: \"a\\\"b\" } "
                                           "strategy: 'no_kv_axis'"),
                               config));
  config = ResolveRunConfig(config);
  RunConfig again = DefaultRunConfig();
  ASSERT_OK(MergeRunConfigFile(WriteConfig(RunConfigToText(config)), again));
  EXPECT_TRUE(MessageDifferencer::Equals(config, again)) << RunConfigToText(again);
  EXPECT_TRUE(MessageDifferencer::Equals(ResolveRunConfig(again), config));
}

TEST(RunConfigTest, ARelativeTextIsMeantFromTheFolderOfTheFile) {
  RunConfig config = DefaultRunConfig();
  ASSERT_OK(MergeRunConfigFile(WriteConfig("train { data_path: 'texts/a.txt' }"), config));
  EXPECT_EQ(config.train().data_path(), JoinPath(::testing::TempDir(), "texts/a.txt"));
  // A file that names none leaves what there is.
  ASSERT_OK(MergeRunConfigFile(WriteConfig("train { lr: 0.5 }"), config));
  EXPECT_EQ(config.train().data_path(), JoinPath(::testing::TempDir(), "texts/a.txt"));
  ASSERT_OK(MergeRunConfigFile(WriteConfig("train { data_path: '/texts/b.txt' }"), config));
  EXPECT_EQ(config.train().data_path(), "/texts/b.txt");
}

TEST(RunConfigTest, UnknownFieldsAllNamedWithTheirLines) {
  RunConfig config = DefaultRunConfig();
  const RunConfig before = config;
  const std::string path = WriteConfig("train {\n  lr: 1\n  learning_rat: 3\n}\nstrategi: 1\n");
  ExpectError(MergeRunConfigFile(path, config), absl::StatusCode::kInvalidArgument,
              path + ":3:", "unknown field 'learning_rat' in TrainConfig",
              path + ":5:", "nearest known one is 'strategy'");
  EXPECT_TRUE(MessageDifferencer::Equals(config, before));
  ExpectError(MergeRunConfigFile(WriteConfig("train { lr: }"), config), absl::StatusCode::kInvalidArgument,
              ":1:");
  ExpectError(MergeRunConfigFile(WriteConfig("train { lr: 1 lr: 2 }"), config),
              absl::StatusCode::kInvalidArgument, "lr", ":1:");
  ExpectError(MergeRunConfigFile("/no/such.textproto", config), absl::StatusCode::kNotFound,
              "/no/such.textproto");
}

TEST(RunConfigTest, WhatFollowsFromOthers) {
  RunConfig config = DefaultRunConfig();
  SetWords("tp=4 ep=2 etp=0", config);
  EXPECT_EQ(StrategyOf(ResolveRunConfig(config)).etp, 4);
  config.mutable_model()->set_num_experts(0);
  EXPECT_EQ(StrategyOf(ResolveRunConfig(config)).etp, 1);
  EXPECT_EQ(StrategyOf(ResolveRunConfig(config)).ep, 1);

  ::setenv("XDG_CACHE_HOME", "/somewhere", 1);
  EXPECT_EQ(ResolveRunConfig(DefaultRunConfig()).train().data_path(), "/somewhere/switchyard/english.txt");
  ::unsetenv("XDG_CACHE_HOME");
  ::setenv("HOME", "/home/u", 1);
  EXPECT_EQ(DefaultDataPath(), "/home/u/.cache/switchyard/english.txt");
}

TEST(RunConfigTest, NamedTargetsAndLinksOverThem) {
  RunConfig config = DefaultRunConfig();
  EXPECT_EQ(TargetOf(config).name, "cpu");
  config.mutable_cluster()->set_target("h100");
  EXPECT_EQ(TargetOf(config).device, "cuda");
  EXPECT_EQ(TargetOf(config).node_bytes_per_second, 50e9);
  config.mutable_cluster()->set_node_gbytes_per_second(25);
  EXPECT_EQ(TargetOf(config).node_bytes_per_second, 25e9);
  EXPECT_EQ(TargetOf(config).link_bytes_per_second, 450e9);
  EXPECT_TRUE(TargetOf(config).libraries.empty());
  config.mutable_train()->set_cudnn_attention(true);
  EXPECT_EQ(TargetOf(config).libraries.count("cudnn"), 1u);
}

TEST(RunConfigTest, LinksOfTheCluster) {
  RunConfig config = DefaultRunConfig();
  EXPECT_EQ(TargetOf(config).node_bytes_per_second, cost::Target().node_bytes_per_second);
  config.mutable_cluster()->set_node_gbytes_per_second(50);
  config.mutable_cluster()->set_node_microseconds(8);
  EXPECT_EQ(TargetOf(config).node_bytes_per_second, 50e9);
  EXPECT_DOUBLE_EQ(TargetOf(config).node_latency_seconds, 8e-6);
  EXPECT_EQ(TargetOf(config).link_bytes_per_second, cost::Target().link_bytes_per_second);
}

TEST(RunConfigTest, StrategyThereAndBack) {
  RunConfig config = DefaultRunConfig();
  ASSERT_OK_AND_ASSIGN(
      const strategy::Strategy s,
      strategy::ParseStrategy(
          "pp=2 dp=2 tp=4 cp=2 ep=8 etp=2 sp vp zero=3 expert_zero=1 microbatches=8 "
          "schedule=gpipe virtual_chunks=2 checkpoint=auto checkpoint_budget=96KiB memory_limit=1.5MiB "
          "dispatcher=allgather overload=1.5 ep_order=reversed "
          "no_kv_axis zero_dp=2 expert_zero_dp=1 cp_attention=ring cp_order=zigzag devices_per_node=4 "
          "hierarchical=off expert_slots=16 expert_map=0:1:2:3:4:5:6:7:7:6:5:4:3:-1:-1:-1"));
  SetStrategy(s, config);
  config = ResolveRunConfig(config);
  EXPECT_EQ(StrategyOf(config).ToString(), s.ToString());
  EXPECT_EQ(config.train().micro_batch_size(), 2);
  EXPECT_EQ(NumMicrobatches(config), 8);
  EXPECT_EQ(config.strategy().find("microbatches"), std::string::npos) << "there would be two truths";
  config.mutable_train()->set_micro_batch_size(5);
  EXPECT_EQ(NumMicrobatches(config), 0);
}

}  // namespace
}  // namespace moe::train
