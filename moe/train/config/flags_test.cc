#include "moe/train/config/flags.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <random>

#include "absl/flags/parse.h"
#include "absl/strings/str_join.h"
#include "glog/logging.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "moe/base/textproto.h"
#include "moe/strategy/word.h"

namespace moe::train {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

// What a process with these arguments makes of them. Flags keep their values, so each has a process of its own.
std::string ResolvedIn(std::vector<std::string> args) {
  int pipe_of[2];
  CHECK_EQ(pipe(pipe_of), 0);
  const pid_t child = fork();
  if (child == 0) {
    args.insert(args.begin(), "test");
    std::vector<char*> argv;
    for (std::string& a : args) argv.push_back(a.data());
    absl::ParseCommandLine(static_cast<int>(argv.size()), argv.data());
    const absl::StatusOr<RunConfig> config = RunConfigFromFlags();
    const std::string text = config.ok() ? RunConfigToText(*config) : config.status().ToString();
    const bool written = write(pipe_of[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
    _exit(written ? 0 : 1);
  }
  close(pipe_of[1]);
  std::string text(1 << 16, '\0');
  size_t size = 0;
  for (ssize_t n; (n = read(pipe_of[0], text.data() + size, text.size() - size)) > 0;) size += n;
  close(pipe_of[0]);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  text.resize(size);
  return text;
}

// Some flags in any order, and some of them from a file in any place, are one configuration.
TEST(FlagsTest, OrderMeansNothing) {
  const std::vector<std::vector<std::string>> choices = {
      {"--strategy=dp=2", "--strategy=dp=4 microbatches=2", "--strategy=pp=2 dp=0 world_size=8 etp=0",
       "--strategy=cp=2 tp=2 sp microbatches=1", "--strategy="},
      {"--tensor_model_parallel_size=2", "--tensor_model_parallel_size=1"},
      {"--context_parallel_size=2", "--data_parallel_size=0"},
      {"--expert_tensor_parallel_size=0", "--expert_model_parallel_size=1"},
      {"--global_batch_size=64", "--global_batch_size=7"},
      {"--micro_batch_size=2", "--micro_batch_size=0"},
      {"--seq_length=64", "--length_buckets=64,128", "--length_buckets="},
      {"--vocab_size=300", "--vocab_size=1009"},
      {"--hidden_size=64", "--num_attention_heads=4"},
      {"--num_experts=0", "--num_experts=4"},
      {"--ffn_hidden_size=96", "--moe_ffn_hidden_size=0"},
      {"--vocab_parallel", "--novocab_parallel"},
      {"--bf16", "--nobf16"},
      {"--fp16", "--nofp16"},
      {"--lr_warmup_iters=0", "--lr=0"},
      {"--train_iters=5", "--norm_topk_prob=false"},
      {"--device=cuda", "--target=h100", "--target="},
      {"--held_out_fraction=0", "--eval_interval=3"},
      {"--run_dir=", "--resume="},
  };
  std::mt19937 random(3);
  for (int trial = 0; trial < 25; ++trial) {
    std::vector<std::string> args;
    for (const std::vector<std::string>& c : choices) {
      if (random() % 2 == 0) args.push_back(c[random() % c.size()]);
    }
    const std::string want = ResolvedIn(args);
    const size_t in_file = random() % (args.size() + 1);
    std::shuffle(args.begin(), args.end(), random);
    const std::string file = JoinPath(::testing::TempDir(), absl::StrCat("flags", trial));
    ASSERT_OK(WriteFile(file, absl::StrJoin(args.begin(), args.begin() + in_file, "\n")));
    args.erase(args.begin(), args.begin() + in_file);
    args.insert(args.begin() + random() % (args.size() + 1), "--flagfile=" + file);
    EXPECT_EQ(ResolvedIn(args), want) << absl::StrJoin(args, " ");
  }
}

TEST(FlagsTest, EmptyValuesAreGiven) {
  EXPECT_THAT(ResolvedIn({"--lr="}), HasSubstr("--lr= is empty"));
  EXPECT_THAT(ResolvedIn({"--run_dir="}), HasSubstr("run_dir: \"\""));
  EXPECT_THAT(ResolvedIn({}), Not(HasSubstr("run_dir")));
  EXPECT_THAT(ResolvedIn({"--strategy="}), HasSubstr("strategy: \"dp=1\""));
  EXPECT_THAT(ResolvedIn({"--config="}), HasSubstr("--config"));
  EXPECT_THAT(ResolvedIn({"--zero_stage="}), HasSubstr("zero="));
}

// Flags stand over a file, and what a file says of a batch gives way to what they decide.
TEST(FlagsTest, ABatchOfFlagsOverOneOfAFile) {
  const std::string file = JoinPath(::testing::TempDir(), "batch.textproto");
  const auto sizes = [&](const std::string& text, std::vector<std::string> args) {
    EXPECT_OK(WriteFile(file, text));
    args.push_back("--config=" + file);
    RunConfig config;
    EXPECT_OK(MergeTextproto(ResolvedIn(args), "resolved", config));
    return absl::StrCat(config.train().global_batch_size(), "/", config.train().micro_batch_size(), " ",
                        config.strategy());
  };
  const std::string saved = "train { global_batch_size: 64 micro_batch_size: 4 } strategy: 'dp=2'";
  EXPECT_EQ(sizes(saved, {"--strategy=dp=2 microbatches=4"}), "64/8 dp=2");
  EXPECT_EQ(sizes(saved, {"--strategy=dp=2 microbatches=4", "--micro_batch_size=2"}), "16/2 dp=2");
  EXPECT_EQ(sizes(saved, {"--strategy=dp=2 microbatches=4", "--global_batch_size=32"}), "32/4 dp=2");
  const std::string named = "train { global_batch_size: 64 } strategy: 'dp=2 microbatches=4'";
  EXPECT_EQ(sizes(named, {}), "64/8 dp=2");
  EXPECT_EQ(sizes(named, {"--micro_batch_size=2"}), "64/2 dp=2");
  EXPECT_EQ(sizes(named, {"--data_parallel_size=4"}), "64/4 dp=4");
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

// The last one, since flags keep their values; it parses twice, the second time from a flag file.
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
  EXPECT_EQ(config.strategy(), "pp=2 dp=2 tp=4 ep=4 sp zero=1 checkpoint=selective bf16");

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

  // What is resumed is where it lies, unless a flag says that it goes on elsewhere.
  ASSERT_OK(WriteFile(run, "train { run_dir: 'from_the_file' }"));
  args = {"test", "--config=" + run};
  parse();
  ASSERT_OK_AND_ASSIGN(config, RunConfigFromFlags());
  EXPECT_EQ(config.train().run_dir(), "from_the_file");
  args = {"test", "--resume=runs/mine"};
  parse();
  ASSERT_OK_AND_ASSIGN(config, RunConfigFromFlags());
  EXPECT_EQ(config.train().run_dir(), "");
  args = {"test", "--run_dir=runs/branch"};
  parse();
  ASSERT_OK_AND_ASSIGN(config, RunConfigFromFlags());
  EXPECT_EQ(config.train().run_dir(), "runs/branch");

  ASSERT_OK(WriteFile(run, "train { lr_: 0.25 }"));
  ExpectError(RunConfigFromFlags(), absl::StatusCode::kInvalidArgument, "--config", run + ":1:", "'lr'");
}

}  // namespace
}  // namespace moe::train
