#include "moe/train/config/flags.h"

#include "absl/flags/parse.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "moe/strategy/word.h"

namespace moe::train {
namespace {

using ::testing::Contains;

// Flags are global and keep their values, so there is one test; it parses twice, the second time from a flag
// file.
TEST(FlagsTest, OverlayInOrder) {
  ASSERT_OK_AND_ASSIGN(RunConfig config, RunConfigFromFlags());
  EXPECT_EQ(RunConfigToText(config), RunConfigToText(ResolveRunConfig(DefaultRunConfig())));

  const std::string dir = ::testing::TempDir();
  const std::string run = JoinPath(dir, "run.textproto"), flags = JoinPath(dir, "flags"),
                    model = JoinPath(dir, "model");
  ASSERT_OK(WriteFile(run, "train { lr: 0.25 train_iters: 7 } model { num_layers: 6 }"));
  ASSERT_OK(WriteFile(model,
                      "num_layers: 5 hidden_size: 64 num_attention_heads: 4 vocab_size: 300 seq_length: 32 "
                      "ffn_hidden_size: 96"));
  std::vector<std::string> args = {"test",
                                   "--config=" + run,
                                   "--train_iters=9",
                                   "--tensor_model_parallel_size=4",
                                   "--moe_expert_capacity_factor=0",
                                   "--sequence_parallel",
                                   "--bf16"};
  auto parse = [&] {
    std::vector<char*> argv;
    for (std::string& a : args) argv.push_back(a.data());
    absl::ParseCommandLine(static_cast<int>(argv.size()), argv.data());
  };
  parse();
  ASSERT_OK_AND_ASSIGN(config, RunConfigFromFlags());
  EXPECT_EQ(config.train().lr(), 0.25);        // from the file
  EXPECT_EQ(config.train().train_iters(), 9);  // the flag wins
  EXPECT_EQ(config.model().num_layers(), 6);
  EXPECT_EQ(config.model().capacity_factor(), 0);  // a flag can set a zero
  EXPECT_EQ(config.strategy(), "pp=2 dp=2 tp=4 ep=2 etp=4 sp checkpoint=selective bf16");

  ASSERT_OK(WriteFile(flags, "--model=" + model +
                                 "\n--strategy=dp=4,pp=3\n--nosequence_parallel\n"
                                 "--nobf16\n--expert_map=0,1,-1\n--zero_stage=9\n"));
  args = {"test", "--flagfile=" + flags};
  parse();
  ASSERT_OK_AND_ASSIGN(config, RunConfigFromFlags());
  EXPECT_EQ(config.model().hidden_size(), 64);
  EXPECT_EQ(config.model().num_experts(), 0);  // nothing of the default model is left
  // The single flags are still given; what is not legal is kept for the checks.
  const strategy::ParsedStrategy parsed = strategy::ParseWords(config.strategy());
  EXPECT_EQ(parsed.strategy.ToString(), "pp=3 dp=4 tp=4 expert_map=0:1:-1");
  ASSERT_EQ(parsed.problems.size(), 1u);
  EXPECT_EQ(parsed.problems[0].what, "zero_stage = 9");

  ASSERT_OK(WriteFile(run, "train { lr_: 0.25 }"));
  ExpectError(RunConfigFromFlags(), absl::StatusCode::kInvalidArgument, "--config", run + ":1:", "'lr'");
}

TEST(FlagsTest, SpeaksTheFieldsWords) {
  const std::vector<std::string> names = RunConfigFlagNames();
  for (const char* name :
       {"tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size",
        "expert_model_parallel_size", "expert_tensor_parallel_size", "micro_batch_size", "global_batch_size",
        "moe_router_topk", "num_experts", "moe_token_dispatcher_type", "recompute_granularity"}) {
    EXPECT_THAT(names, Contains(name));
  }
}

}  // namespace
}  // namespace moe::train
