// How the tools end when they are not let finish: by signals as launchers send them, by limits of the system,
// by outputs that cannot be written, after a pause. What is asked for and not done is never exit code 0.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "moe/base/exit_code.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "tools/run_tool.h"

namespace moe::tools {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kSmall[] =
    " --num_layers=2 --hidden_size=32 --num_attention_heads=4 --num_query_groups=2 --moe_ffn_hidden_size=32"
    " --seq_length=32 --global_batch_size=8 --micro_batch_size=2 --strategy=\"dp=2 ep=2\" --log_interval=1";

class StopsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        JoinPath(::testing::TempDir(),
                 absl::StrCat("stops_", ::testing::UnitTest::GetInstance()->current_test_info()->name()));
    ASSERT_OK(RemoveTree(folder_));
    ASSERT_OK(MakeFolders(folder_));
    std::string text;
    for (int i = 0; i < 3000; ++i) absl::StrAppend(&text, "the ", i % 13, " quick brown foxes\n");
    ASSERT_OK(WriteFile(Path("text.txt"), text));
  }
  std::string Path(const std::string& name) const { return JoinPath(folder_, name); }
  std::string Train(const std::string& flags) const {
    return absl::StrCat(ToolPath("compile_and_train"), kSmall, " --data_path=", Path("text.txt"),
                        " --run_dir=", Path("run"), " ", flags);
  }
  std::string Output() const { return ReadFile(Path("out")).value_or(""); }
  std::string Errors() const { return ReadFile(Path("err")).value_or(""); }

  // In the background; nothing of the test's group is its.
  void Start(const std::string& command) {
    const std::string line =
        absl::StrCat("exec ", command, " >", Path("out"), " 2>", Path("err"), " </dev/null");
    ASSERT_OK(RemoveTree(Path("out")));
    pid_ = fork();
    if (pid_ == 0) {
      setsid();
      execl("/bin/sh", "sh", "-c", line.c_str(), static_cast<char*>(nullptr));
      _exit(127);
    }
  }
  int Wait() const {
    int status = 0;
    waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  bool AwaitOutput(const std::string& text) const {
    for (int i = 0; i < 6000 && !absl::StrContains(Output(), text); ++i)
      absl::SleepFor(absl::Milliseconds(10));
    return absl::StrContains(Output(), text);
  }
  // Runs that are watched speak JSON.
  bool AwaitStep(int step) const { return AwaitOutput(absl::StrCat("\"iteration\":", step, ",")); }
  int LastStep() const {
    const std::string text = Output();
    const size_t at = text.rfind("\"iteration\":");
    return at == std::string::npos ? 0 : std::atoi(text.c_str() + at + 12);
  }
  // Processes that work in this test's folder.
  std::vector<pid_t> Running() const {
    std::vector<pid_t> pids;
    const std::vector<std::string> all = ListFolder("/proc").value();
    for (const std::string& name : all) {
      pid_t pid = 0;
      const std::string line = ReadFile(absl::StrCat("/proc/", name, "/cmdline")).value_or("");
      if (absl::SimpleAtoi(name, &pid) && absl::StrContains(line, absl::StrCat("--run_dir=", folder_)) &&
          !absl::StartsWith(line, "sh")) {
        pids.push_back(pid);
      }
    }
    return pids;
  }
  // As scancel, systemd and Kubernetes do: to the parent and to its children.
  void SendToAll(int signal) const {
    for (const pid_t pid : Running()) kill(pid, signal);
  }
  void ExpectResumable() const {
    const Outcome o = RunShell(
        absl::StrCat(ToolPath("compile_and_train"), " --resume=", Path("run"), " --train_iters=4 --quiet"));
    EXPECT_EQ(o.code, kExitDone) << o.output;
  }

  std::string folder_;
  pid_t pid_ = -1;
};

TEST_F(StopsTest, ASignalWhileTrainingSavesAndSaysHowToGoOn) {
  for (const int signal : {SIGTERM, SIGUSR1, SIGHUP}) {
    ASSERT_OK(RemoveTree(Path("run")));
    Start(Train("--train_iters=100000 --json"));
    ASSERT_TRUE(AwaitStep(2)) << Errors();
    kill(pid_, signal);
    EXPECT_EQ(Wait(), kExitStopped) << signal << ": " << Errors();
    EXPECT_THAT(Output(), HasSubstr("{\"kind\":\"stopped\",\"step\":"));
    EXPECT_THAT(Output(), HasSubstr(absl::StrCat("go on with --resume=", Path("run"))));
    EXPECT_TRUE(IsFolder(Path("run/checkpoint")));
  }
}

TEST_F(StopsTest, AQuietRunThatWasStoppedSaysSo) {
  Start(Train("--train_iters=100000 --quiet"));
  while (!FileExists(Path("run/metrics.jsonl"))) absl::SleepFor(absl::Milliseconds(10));
  kill(pid_, SIGINT);
  EXPECT_EQ(Wait(), kExitStopped) << Errors();
  EXPECT_THAT(Output(), HasSubstr("stopped   "));
  EXPECT_THAT(Output(), HasSubstr("go on with --resume="));
}

TEST_F(StopsTest, TheWholeJobIsToldTwiceAtOnce) {
  Start(Train("--train_iters=100000 --json --spawn=2"));
  ASSERT_TRUE(AwaitStep(3)) << Errors();
  EXPECT_EQ(Running().size(), 3);
  SendToAll(SIGTERM);
  absl::SleepFor(absl::Milliseconds(100));
  SendToAll(SIGTERM);
  const absl::Time told = absl::Now();
  EXPECT_EQ(Wait(), kExitStopped) << Errors();
  EXPECT_LT(absl::Now() - told, absl::Seconds(20));
  EXPECT_THAT(Output(), HasSubstr("go on with --resume="));
  EXPECT_EQ(Errors(), "");
  EXPECT_TRUE(Running().empty());
  EXPECT_TRUE(IsFolder(Path("run/checkpoint")));
}

TEST_F(StopsTest, BeforeTrainingBeginsNothingIsToBeSaved) {
  for (const char* processes : {"", " --spawn=2"}) {
    ASSERT_OK(RemoveTree(Path("run")));
    Start(Train(absl::StrCat("--train_iters=4", processes)));
    ASSERT_TRUE(AwaitOutput("\nmesh ")) << Errors();
    SendToAll(SIGTERM);
    EXPECT_EQ(Wait(), kExitStopped) << Output() << Errors();
    EXPECT_THAT(Errors(), HasSubstr("stopped by SIGTERM before training began"));
    EXPECT_TRUE(Running().empty());
    EXPECT_FALSE(IsFolder(Path("run/checkpoint")));
  }
}

TEST_F(StopsTest, ASecondInterruptEndsAtOnce) {
  Start(Train("--train_iters=100000 --json --spawn=2"));
  ASSERT_TRUE(AwaitStep(2)) << Errors();
  std::vector<pid_t> all = Running();
  ASSERT_EQ(all.size(), 3);
  const pid_t child = all[0] == pid_ ? all[1] : all[0];
  kill(child, SIGSTOP);  // so that the first one cannot be obeyed
  kill(pid_, SIGINT);
  absl::SleepFor(absl::Milliseconds(1200));
  kill(pid_, SIGINT);
  EXPECT_EQ(Wait(), kExitAtOnce) << Errors();
  EXPECT_TRUE(Running().empty());
}

TEST_F(StopsTest, AProcessEndsWithTheParentThatStartedIt) {
  for (const int milliseconds : {30, 80, 250}) {
    ASSERT_OK(RemoveTree(Path("run")));
    Start(Train("--train_iters=100000 --quiet --spawn=4"));
    absl::SleepFor(absl::Milliseconds(milliseconds));
    kill(pid_, SIGKILL);
    EXPECT_EQ(Wait(), 1000 + SIGKILL);
    for (int i = 0; i < 500 && !Running().empty(); ++i) absl::SleepFor(absl::Milliseconds(10));
    EXPECT_TRUE(Running().empty()) << milliseconds;
    SendToAll(SIGKILL);
  }
}

TEST_F(StopsTest, APauseIsNotADeath) {
  for (const char* processes : {"", " --spawn=2"}) {
    ASSERT_OK(RemoveTree(Path("run")));
    Start(Train(absl::StrCat("--train_iters=100000 --json --device_timeout=1", processes)));
    ASSERT_TRUE(AwaitStep(2)) << Errors();
    SendToAll(SIGSTOP);
    absl::SleepFor(absl::Milliseconds(2500));
    const int step = LastStep();
    SendToAll(SIGCONT);
    ASSERT_TRUE(AwaitStep(step + 20)) << Errors();
    SendToAll(SIGTERM);
    EXPECT_EQ(Wait(), kExitStopped) << Errors();
  }
}

TEST_F(StopsTest, OutputThatIsNotWrittenIsAnErrorAndAReaderWhoHasEnoughIsNone) {
  const std::string passes = ToolPath("opt") + " --print_passes";
  const Outcome full = RunShell(passes + " >/dev/full");
  EXPECT_EQ(full.code, kExitError);
  EXPECT_THAT(full.output, HasSubstr("No space left on device"));
  const Outcome json = RunShell(Train("--train_iters=1 --json >/dev/full"));
  EXPECT_EQ(json.code, kExitError);
  EXPECT_THAT(json.output, HasSubstr("cannot write all of the output: No space left on device"));
  EXPECT_EQ(RunShell("{ " + passes + "; } | head -n 1 | wc -l").output, "1\n");
  // A run whose reader is gone ends in order.
  ASSERT_OK(RemoveTree(Path("run")));
  const Outcome piped =
      RunShell(absl::StrCat("{ ", Train("--train_iters=100000 --json"), "; echo code $? >&2; } | head -n 3"));
  EXPECT_THAT(piped.output, HasSubstr("code 75"));
  EXPECT_THAT(piped.output, Not(HasSubstr("error")));
  EXPECT_TRUE(IsFolder(Path("run/checkpoint")));
}

TEST_F(StopsTest, LimitsOfTheSystemAreErrorsWithWords) {
  const Outcome files = RunShell("ulimit -f 40; " + Train("--train_iters=2 --quiet"));
  EXPECT_EQ(files.code, kExitError) << files.output;
  EXPECT_THAT(files.output, HasSubstr("File too large"));
  ASSERT_OK(RemoveTree(Path("run")));
  for (const int megabytes : {200, 400, 800}) {
    const Outcome memory =
        RunShell(absl::StrCat("ulimit -v ", megabytes * 1024, "; ", Train("--train_iters=2 --quiet")));
    ASSERT_OK(RemoveTree(Path("run")));
    if (memory.code == kExitDone) continue;
    EXPECT_EQ(memory.code, kExitError) << megabytes << " MB: " << memory.output;
    EXPECT_THAT(memory.output, HasSubstr("error")) << megabytes;
  }
}

TEST_F(StopsTest, AnUpdateBeyondAllNumbersIsAnErrorAndNothingIsSaved) {
  const Outcome o =
      RunShell(Train("--train_iters=4 --lr=1e300 --lr_warmup_iters=0 --save_interval=1 --quiet"));
  EXPECT_EQ(o.code, kExitError);
  EXPECT_THAT(o.output, HasSubstr("the updated weights are not finite"));
  EXPECT_FALSE(IsFolder(Path("run/checkpoint")));
}

}  // namespace
}  // namespace moe::tools
