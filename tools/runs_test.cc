// What belongs to a run, through the command itself: its folder, its configuration, its history, and going on.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "tools/run_tool.h"

namespace moe::tools {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kModel[] =
    " --num_layers=2 --hidden_size=32 --num_attention_heads=4 --num_query_groups=2 --moe_ffn_hidden_size=32"
    " --seq_length=32 --num_experts=4 --strategy=\"dp=2 ep=2\" --global_batch_size=8 --micro_batch_size=2"
    " --lr_warmup_iters=2";

class RunsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = JoinPath(::testing::TempDir(), "runs");
    ASSERT_OK(RemoveTree(folder_));
    ASSERT_OK(MakeFolders(folder_));
    for (const char* name : {"text.txt", "other.txt"}) {
      std::string text;
      for (int i = 0; i < 2000; ++i) absl::StrAppend(&text, name, " ", i % 13, " quick brown foxes\n");
      ASSERT_OK(WriteFile(Path(name), text));
    }
  }
  std::string Path(const std::string& name) const { return JoinPath(folder_, name); }
  // The tool, from the test's folder or one below it.
  Outcome Tool(const std::string& flags, const std::string& from = "") const {
    return RunShell(
        absl::StrCat("cd ", JoinPath(folder_, from), " && ", ToolPath("compile_and_train"), " ", flags));
  }
  static std::string New(const std::string& run, const std::string& flags) {
    return absl::StrCat("--data_path=text.txt --run_dir=", run, kModel, " ", flags);
  }
  void Train(const std::string& run, const std::string& flags) const {
    const Outcome o = Tool(New(run, flags + " --quiet"));
    ASSERT_EQ(o.code, 0) << o.output;
  }
  // A run in the background that does not end, once it trains.
  pid_t Start(const std::string& flags) const {
    const std::string line =
        absl::StrCat("cd ", folder_, " && exec ", ToolPath("compile_and_train"), " ", flags,
                     " --quiet --train_iters=1000000 >background.out 2>&1 </dev/null");
    const pid_t pid = fork();
    if (pid == 0) {
      execl("/bin/sh", "sh", "-c", line.c_str(), static_cast<char*>(nullptr));
      _exit(127);
    }
    return pid;
  }
  void AwaitFile(const std::string& name) const {
    for (int i = 0; i < 2400 && ReadFile(Path(name)).value_or("").empty(); ++i) usleep(25'000);
    ASSERT_NE(ReadFile(Path(name)).value_or(""), "") << ReadFile(Path("background.out")).value_or("");
  }
  static void End(pid_t pid) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  // All files below a folder, with what is in them.
  std::string Contents(const std::string& name) const {
    return RunShell(absl::StrCat("cd ", Path(name), " && find . -type f | sort | xargs md5sum")).output;
  }
  std::vector<std::string> Checkpoints(const std::string& run) const {
    return ListFolder(Path(run + "/checkpoint")).value_or(std::vector<std::string>());
  }
  int Lines(const std::string& run, const std::string& part) const {
    const std::string text = ReadFile(Path(run + "/metrics.jsonl")).value_or("");
    int lines = 0;
    for (absl::string_view line : absl::StrSplit(text, '\n')) lines += absl::StrContains(line, part);
    return lines;
  }
  std::string folder_;
};

TEST_F(RunsTest, AFolderBelongsToOneRun) {
  const pid_t first = Start(New("run", "--log_interval=1"));
  AwaitFile("run/.lock");
  for (const std::string& flags : {New("run", "--train_iters=2"), New("run", "--train_iters=2 --spawn=2")}) {
    const Outcome second = Tool(flags);
    EXPECT_EQ(second.code, 1) << second.output;
    EXPECT_THAT(second.output, HasSubstr(absl::StrCat("run is in use: process ", first, " on host ")));
  }
  AwaitFile("run/metrics.jsonl");
  const Outcome resumed = Tool("--resume=run --train_iters=2");
  EXPECT_EQ(resumed.code, 1) << resumed.output;
  EXPECT_THAT(resumed.output, HasSubstr(absl::StrCat("process ", first, " ")));
  End(first);
  // It had no checkpoint: to resume is to begin, with its own settings, and to begin is legal, too.
  const Outcome begun = Tool("--resume=run --train_iters=2");
  EXPECT_EQ(begun.code, 0) << begun.output;
  EXPECT_THAT(begun.output, HasSubstr("run has no checkpoint yet: it begins with step 1"));
  EXPECT_THAT(begun.output, HasSubstr("4 experts"));
  EXPECT_THAT(begun.output, HasSubstr("is kept in run/retired/after_step_00000000"));
  EXPECT_THAT(Checkpoints("run"), ElementsAre("step_00000002"));
  EXPECT_EQ(Lines("run", "\"train\""), 2);
  ASSERT_OK(RemoveTree(Path("run/checkpoint")));
  Train("run", "--train_iters=1");
  EXPECT_THAT(Checkpoints("run"), ElementsAre("step_00000001"));
  EXPECT_FALSE(FileExists(Path("run/.lock")));
  // And now it holds one.
  const Outcome over = Tool(New("run", "--train_iters=1"));
  EXPECT_EQ(over.code, 1);
  EXPECT_THAT(over.output, HasSubstr("--resume=run"));
  const Outcome branch =
      Tool("--resume=run/checkpoint/step_00000001 --train_iters=2 --run_dir=branch --quiet");
  EXPECT_EQ(branch.code, 0) << branch.output;
  const Outcome mixed = Tool("--resume=run --run_dir=branch --train_iters=4");
  EXPECT_EQ(mixed.code, 1);
  EXPECT_THAT(mixed.output, HasSubstr("branch holds a run already"));
}

TEST_F(RunsTest, ARunIsWhereItLies) {
  Train("run", "--train_iters=2");
  const std::string before = Contents("run");
  ASSERT_EQ(RunShell(absl::StrCat("cp -a ", Path("run"), " ", Path("copy"))).code, 0);
  const Outcome copy = Tool("--resume=copy --train_iters=3 --quiet");
  EXPECT_EQ(copy.code, 0) << copy.output;
  EXPECT_EQ(Contents("run"), before);
  EXPECT_THAT(Checkpoints("copy"), ElementsAre("step_00000002", "step_00000003"));
  // By relative paths from elsewhere; the text, too, is found from there.
  ASSERT_OK(MakeFolders(Path("some/where")));
  const Outcome elsewhere = Tool("--resume=../../run/checkpoint --train_iters=3 --quiet", "some/where");
  EXPECT_EQ(elsewhere.code, 0) << elsewhere.output;
  EXPECT_THAT(Checkpoints("run"), ElementsAre("step_00000002", "step_00000003"));
  EXPECT_FALSE(IsFolder(Path("some/where/runs")));
  // A new run with its configuration is a new run.
  ASSERT_OK_AND_ASSIGN(const std::string config, ReadFile(Path("run/config.textproto")));
  const Outcome fresh =
      Tool("--config=run/config.textproto --run_dir=fresh --train_iters=1 --log_interval=1");
  EXPECT_EQ(fresh.code, 0) << fresh.output;
  EXPECT_THAT(fresh.output, Not(HasSubstr("resume  ")));
  EXPECT_THAT(Checkpoints("fresh"), ElementsAre("step_00000001"));
  ASSERT_OK_AND_ASSIGN(const std::string after, ReadFile(Path("run/config.textproto")));
  EXPECT_EQ(config, after);
}

TEST_F(RunsTest, NothingChangesBeforeARunIsAccepted) {
  Train("run", "--train_iters=2");
  ASSERT_OK(MakeFolders(Path("run/checkpoint/step_00000001.tmp.AbCdEf")));
  const std::string before = Contents("run");
  struct Case {
    const char* flags;
    std::vector<std::string> parts;
  };
  for (const Case& c : {Case{"--seq_length=64", {"1 setting", "seq_length: checkpoint 32, this run 64"}},
                        Case{"--seed=2", {"1 setting", "seed: checkpoint 1, this run 2"}},
                        Case{"--data_path=other.txt", {"1 setting", "other.txt is not the text", "text.txt"}},
                        Case{"--held_out_fraction=0.5", {"1 setting", "held_out_fraction"}},
                        Case{"--dtype=f64", {"dtype: checkpoint f32, this run f64"}},
                        Case{"--num_experts=8 --seed=3 --seq_length=16",
                             {"3 settings", "num_experts: checkpoint 4, this run 8",
                              "seed: checkpoint 1, this run 3", "seq_length: checkpoint 32, this run 16"}},
                        Case{"--memory_limit=1KiB", {"1 KiB"}}, Case{"--lr=-1", {"lr = -1"}}}) {
    const Outcome o = Tool(absl::StrCat("--resume=run --train_iters=4 ", c.flags));
    EXPECT_EQ(o.code, 1) << c.flags << "\n" << o.output;
    for (const std::string& part : c.parts) EXPECT_THAT(o.output, HasSubstr(part)) << c.flags;
    // Passes may have left their dumps.
    ASSERT_OK_AND_ASSIGN(const std::string config, ReadFile(Path("run/config.textproto")));
    EXPECT_THAT(config, HasSubstr("train_iters: 2"));
    EXPECT_THAT(Checkpoints("run"), ElementsAre("step_00000001.tmp.AbCdEf", "step_00000002"));
    EXPECT_EQ(Lines("run", "\"train\""), 2);
  }
  const Outcome o = Tool("--resume=run --train_iters=4 --log_interval=1");
  EXPECT_EQ(o.code, 0) << o.output;
  EXPECT_THAT(o.output, HasSubstr("train_iters: 2 -> 4"));
  EXPECT_THAT(o.output, HasSubstr("the learning rate of step 3 is "));
  EXPECT_THAT(Checkpoints("run"), ElementsAre("step_00000002", "step_00000004"));
  EXPECT_NE(Contents("run"), before);
}

TEST_F(RunsTest, OneLineOfHistory) {
  Train("run", "--train_iters=8 --save_interval=2");
  const Outcome back =
      Tool("--config=run/config.textproto --resume=run/checkpoint/step_00000004 --train_iters=6");
  ASSERT_EQ(back.code, 0) << back.output;
  EXPECT_THAT(back.output, HasSubstr("steps 6 and 8 are kept in run/retired/after_step_00000004\n"));
  EXPECT_THAT(Checkpoints("run"), ElementsAre("step_00000002", "step_00000004", "step_00000006"));
  EXPECT_EQ(Lines("run", "\"train\""), 6);
  const Outcome on = Tool("--resume=run --train_iters=7");
  ASSERT_EQ(on.code, 0) << on.output;
  EXPECT_THAT(on.output, HasSubstr("step 6 of run/checkpoint/step_00000006\n"));
  EXPECT_THAT(on.output, Not(HasSubstr("kept in")));
  // What was kept aside can be looked at.
  const Outcome aside = Tool(
      "--eval_only --quiet --resume=run/retired/after_step_00000004/step_00000008 "
      "--data_path=text.txt");
  EXPECT_EQ(aside.code, 0) << aside.output;
}

TEST_F(RunsTest, ADamagedNewestCheckpoint) {
  Train("run", "--train_iters=6 --save_interval=2");
  const std::string newest = Path("run/checkpoint/step_00000006/model-00001-of-00001.safetensors");
  ASSERT_OK_AND_ASSIGN(std::string bytes, ReadFile(newest));
  bytes[bytes.size() / 2] ^= 1;
  ASSERT_OK(WriteFile(newest, bytes));
  const Outcome refused = Tool("--resume=run --train_iters=7 --quiet");
  EXPECT_EQ(refused.code, 1);
  const std::string offer = "--resume=run/checkpoint/step_00000004";
  EXPECT_THAT(refused.output, HasSubstr("step_00000006 is damaged"));
  EXPECT_THAT(refused.output, HasSubstr("step 4: " + offer));
  const Outcome taken = Tool(offer + " --train_iters=7 --quiet");
  EXPECT_EQ(taken.code, 0) << taken.output;
  EXPECT_THAT(Checkpoints("run"),
              ElementsAre("step_00000002", "step_00000004", "step_00000006", "step_00000007"));
}

TEST_F(RunsTest, TheLastEvaluationIsMadeOnce) {
  Train("run", "--train_iters=2");
  EXPECT_EQ(Lines("run", "\"eval\""), 1);
  // As a run leaves it that was killed while it evaluated.
  ASSERT_EQ(RunShell(absl::StrCat("sed -i /eval/d ", Path("run/metrics.jsonl"))).code, 0);
  for (int i = 0; i < 2; ++i) {
    const Outcome o = Tool("--resume=run");
    EXPECT_EQ(o.code, 0) << o.output;
    EXPECT_THAT(o.output, HasSubstr("held-out loss"));
    EXPECT_EQ(Lines("run", "\"eval\""), 1);
    EXPECT_EQ(Lines("run", "\"train\""), 2);
  }
}

TEST_F(RunsTest, WhoeverIsRestartedMayNameOneFolderForBoth) {
  for (const char* steps : {"2", "3"}) {
    const Outcome o = Tool(New("run", absl::StrCat("--resume=run --quiet --train_iters=", steps)));
    EXPECT_EQ(o.code, 0) << o.output;
  }
  EXPECT_THAT(Checkpoints("run"), ElementsAre("step_00000002", "step_00000003"));
  const Outcome nowhere = Tool("--resume=nowhere");
  EXPECT_EQ(nowhere.code, 1);
  EXPECT_THAT(nowhere.output, HasSubstr("neither a run nor a checkpoint at nowhere"));
  EXPECT_FALSE(IsFolder(Path("nowhere")));
  const Outcome warm = Tool(New("warm", "--train_iters=1"));
  EXPECT_THAT(warm.output, HasSubstr("lr_warmup_iters = 2 is more than the 1 steps"));
}

TEST_F(RunsTest, ABranchThatSavedNothingBeginsWhereItBranched) {
  Train("old", "--train_iters=2");
  const pid_t branch = Start("--resume=old --run_dir=new --log_interval=1");
  AwaitFile("new/metrics.jsonl");
  End(branch);
  const Outcome o = Tool("--resume=new --train_iters=3");
  EXPECT_EQ(o.code, 0) << o.output;
  EXPECT_THAT(o.output, HasSubstr("old/checkpoint/step_00000002\n"));
  EXPECT_THAT(Checkpoints("new"), ElementsAre("step_00000003"));
  EXPECT_THAT(Checkpoints("old"), ElementsAre("step_00000002"));
}

TEST_F(RunsTest, SeveralProcesses) {
  Train("run", "--train_iters=4 --save_interval=2");
  const Outcome back = Tool("--resume=run/checkpoint/step_00000002 --train_iters=3 --spawn=2");
  EXPECT_EQ(back.code, 0) << back.output;
  EXPECT_THAT(back.output, HasSubstr("step 4 is kept in run/retired/after_step_00000002"));
  EXPECT_THAT(Checkpoints("run"), ElementsAre("step_00000002", "step_00000003"));
  const Outcome seed = Tool("--resume=run --train_iters=5 --seed=9 --spawn=2");
  EXPECT_EQ(seed.code, 1);
  EXPECT_THAT(seed.output, HasSubstr("seed: checkpoint 1, this run 9"));
  EXPECT_FALSE(FileExists(Path("run/.lock")));
}

}  // namespace
}  // namespace moe::tools
