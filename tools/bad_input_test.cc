// What users get wrong, through the command itself: the exit code is 1, the message names the value and what
// would be legal, and nothing is left behind.

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Outcome {
  int code = -1;
  std::string output;  // both streams
};

class BadInputTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = JoinPath(::testing::TempDir(), "bad_input");
    ASSERT_OK(RemoveTree(folder_));
    ASSERT_OK(MakeFolders(folder_));
    text_ = JoinPath(folder_, "text.txt");
    std::string text;
    for (int i = 0; i < 3000; ++i) absl::StrAppend(&text, "the ", i % 13, " quick brown foxes\n");
    ASSERT_OK(WriteFile(text_, text));
    run_ = JoinPath(folder_, "run");
  }

  static Outcome Run(const std::string& command) {
    Outcome o;
    FILE* pipe = popen(absl::StrCat(command, " 2>&1 </dev/null").c_str(), "r");
    char buffer[4096];
    size_t n;
    while ((n = fread(buffer, 1, sizeof(buffer), pipe)) > 0) o.output.append(buffer, n);
    const int status = pclose(pipe);
    o.code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    return o;
  }
  static std::string Tool(const std::string& name) {
    return JoinPath(std::getenv("TEST_SRCDIR"), absl::StrCat("moe/tools/", name));
  }
  Outcome Train(const std::string& flags) const {
    const bool has_run = absl::StrContains(flags, "--run_dir");
    const bool has_text = absl::StrContains(flags, "--data_path");
    return Run(absl::StrCat(Tool("compile_and_train"), has_run ? "" : " --run_dir=" + run_,
                            has_text ? "" : " --data_path=" + text_, " ", flags));
  }
  // Refused, with all the parts in the message, in few lines, before anything was written.
  void ExpectRefused(const std::string& flags, const std::vector<std::string>& parts) {
    const Outcome o = Train(flags);
    EXPECT_EQ(o.code, 1) << o.output;
    EXPECT_THAT(o.output, HasSubstr("error: "));
    for (const std::string& part : parts) EXPECT_THAT(o.output, HasSubstr(part)) << flags;
    EXPECT_THAT(o.output, Not(HasSubstr("Check failed")));
    EXPECT_FALSE(IsFolder(run_)) << flags;
    EXPECT_FALSE(FileExists(run_)) << flags;
  }

  std::string folder_, text_, run_;
};

TEST_F(BadInputTest, Strategies) {
  ExpectRefused("--expert_model_parallel_size=3",
                {"expert_model_parallel_size = 3", "num_experts = 8", "1, 2, 4, 8"});
  ExpectRefused(
      "--num_attention_heads=6 --num_query_groups=3 --kv_channels=16 --tensor_model_parallel_size=4",
      {"tensor_model_parallel_size = 4", "num_attention_heads = 6"});
  ExpectRefused("--world_size=12", {"12", "world"});
  ExpectRefused("--moe_router_topk=9", {"moe_router_topk = 9", "num_experts = 8"});
  ExpectRefused("--num_layers=1", {"num_layers = 1", "2 pipeline stages"});
  ExpectRefused("--global_batch_size=30", {"global_batch_size = 30"});
}

TEST_F(BadInputTest, AllProblemsOfOneConfigurationAtOnce) {
  ExpectRefused("--expert_model_parallel_size=3 --global_batch_size=30 --moe_router_topk=9 --adam_beta1=2",
                {"5 problems", "expert_model_parallel_size = 3", "global_batch_size = 30",
                 "moe_router_topk = 9", "adam_beta1 = 2"});
}

TEST_F(BadInputTest, Files) {
  const std::string config = JoinPath(folder_, "c.textproto");
  ASSERT_OK(WriteFile(config, "model { num_layers: 4\n  num_expert: 8 }\n"));
  ExpectRefused("--config=" + config, {"c.textproto:2:13", "num_expert", "num_experts"});
  ExpectRefused("--data_path=/nowhere/text.txt", {"/nowhere/text.txt"});
  const std::string empty = JoinPath(folder_, "empty.txt");
  ASSERT_OK(WriteFile(empty, ""));
  ExpectRefused("--data_path=" + empty, {"empty.txt", "empty"});
  ExpectRefused("--resume=/nowhere/checkpoint", {"/nowhere/checkpoint"});
  const Outcome flag = Train("--expert_paralel=3");
  EXPECT_EQ(flag.code, 1);
  EXPECT_THAT(flag.output, HasSubstr("expert_paralel"));
  ExpectRefused("--passes=autodif", {"unknown pass 'autodif'"});
  ExpectRefused("--eval_only", {"--resume"});
}

TEST_F(BadInputTest, RunDirectories) {
  const std::string file = JoinPath(folder_, "a_file");
  ASSERT_OK(WriteFile(file, "keep"));
  ExpectRefused(absl::StrCat("--run_dir=", file, "/run"), {"a_file", "--run_dir"});
  ExpectRefused(absl::StrCat("--run_dir=", file), {"a_file", "--run_dir"});
  ASSERT_OK_AND_ASSIGN(const std::string kept, ReadFile(file));
  EXPECT_EQ(kept, "keep");
  if (geteuid() != 0) {  // root writes anywhere
    const std::string locked = JoinPath(folder_, "locked");
    ASSERT_OK(MakeFolders(locked));
    ASSERT_EQ(chmod(locked.c_str(), 0555), 0);
    ExpectRefused(absl::StrCat("--run_dir=", locked, "/run"), {"locked", "--run_dir"});
  }
}

// One short run, and what may happen to its checkpoint before somebody resumes.
TEST_F(BadInputTest, Checkpoints) {
  const std::string small =
      " --num_layers=2 --hidden_size=32 --num_attention_heads=4 --num_query_groups=2 --moe_ffn_hidden_size=32"
      " --seq_length=32 --strategy=\"dp=2 ep=2\" --global_batch_size=4 --micro_batch_size=2";
  const std::string saved = JoinPath(folder_, "saved");
  const Outcome trained = Train(absl::StrCat("--quiet --train_iters=3 --run_dir=", saved, small));
  ASSERT_EQ(trained.code, 0) << trained.output;
  const std::string dir = JoinPath(saved, "checkpoint/step_00000003");
  const std::string resume = absl::StrCat("--train_iters=4 --run_dir=", run_, " --resume=", dir, small);
  ExpectRefused(resume + " --num_experts=4", {"num_experts", "8", "4"});
  ExpectRefused(absl::StrCat("--run_dir=", saved, small, " --resume="), {"--resume=" + saved});

  ASSERT_OK_AND_ASSIGN(const std::vector<std::string> files, ListFolder(dir));
  std::string shard;
  for (const std::string& f : files) {
    if (absl::EndsWith(f, ".safetensors")) shard = JoinPath(dir, f);
  }
  ASSERT_FALSE(shard.empty());
  ASSERT_OK_AND_ASSIGN(const std::string good, ReadFile(shard));
  std::string bad = good;
  bad[bad.size() - 100] ^= 1;
  ASSERT_OK(WriteFile(shard, bad));
  ExpectRefused(resume, {dir});
  ASSERT_OK(WriteFile(shard, good.substr(0, good.size() / 2)));
  ExpectRefused(resume, {dir});
  bad = good;
  bad[1] = '\xff';  // the header's length
  bad[4] = '\xff';
  ASSERT_OK(WriteFile(shard, bad));
  ExpectRefused(resume, {dir});
  const Outcome generated =
      Run(absl::StrCat(Tool("generate"), " --checkpoint=", dir, " --prompt=the --tokens=5"));
  EXPECT_EQ(generated.code, 1) << generated.output;
  ASSERT_OK(WriteFile(shard, good));
  const Outcome again = Train("--quiet " + resume);
  EXPECT_EQ(again.code, 0) << again.output;
  const Outcome text =
      Run(absl::StrCat(Tool("generate"), " --checkpoint=", saved, " --prompt=the --tokens=5"));
  EXPECT_EQ(text.code, 0) << text.output;
  EXPECT_EQ(text.output.substr(0, 3), "the");
}

}  // namespace
}  // namespace moe
