// Runs of several processes through the command itself, on loopback and over network namespaces: losses are
// those of one process to the bit, checkpoints go from any number of processes to any, and one that dies or
// stops is named by every survivor.

#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "moe/base/exit_code.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"

namespace moe::tools {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// The same over GPUs that are emulated, by NCCL: eight for each process to see. An emulated GPU is slow, so its model is
// smaller.
#ifdef ON_EMULATED_GPUS
constexpr bool kGpus = true;
constexpr char kSmall[] =
    " --num_layers=2 --hidden_size=16 --num_attention_heads=2 --num_query_groups=2 --moe_ffn_hidden_size=16"
    " --seq_length=16 --global_batch_size=8 --micro_batch_size=1 --log_interval=1 --json --eval_samples=8";
#else
constexpr bool kGpus = false;
constexpr char kSmall[] =
    " --num_layers=2 --hidden_size=32 --num_attention_heads=4 --num_query_groups=2 --moe_ffn_hidden_size=32"
    " --seq_length=32 --global_batch_size=8 --micro_batch_size=1 --log_interval=1 --json --eval_samples=8";
#endif

struct Outcome {
  int code = -1;
  std::string output, errors;
};

class ProcessesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name :
         {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SWITCHYARD_JOB_TOKEN"}) {
      unsetenv(name);
    }
    if (kGpus) {
      setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7", 1);
      // Where the program finds the library that --device=cuda loads.
      setenv("LD_LIBRARY_PATH", JoinPath(std::getenv("TEST_SRCDIR"), "moe/tools/gpu/emulated").c_str(), 1);
    }
    folder_ =
        JoinPath(::testing::TempDir(),
                 absl::StrCat("processes_", ::testing::UnitTest::GetInstance()->current_test_info()->name()));
    ASSERT_OK(RemoveTree(folder_));
    ASSERT_OK(MakeFolders(folder_));
    setenv("SWITCHYARD_JOB_TOKEN_FILE", Path("token").c_str(), 1);
    std::string text;
    for (int i = 0; i < 3000; ++i) absl::StrAppend(&text, "the ", i % 13, " quick brown foxes\n");
    ASSERT_OK(WriteFile(Path("text.txt"), text));
  }
  std::string Path(const std::string& name) const { return JoinPath(folder_, name); }

  // The command line of a run named `name`; `before` are variables and wrappers.
  std::string Command(const std::string& name, const std::string& flags,
                      const std::string& before = "") const {
    return absl::StrCat(before, " ", JoinPath(std::getenv("TEST_SRCDIR"), "moe/tools/compile_and_train"),
                        kSmall, kGpus ? " --device=cuda" : "", " --data_path=", Path("text.txt"),
                        " --run_dir=", Path(name), " ", flags);
  }
  // Starts a command in the background; its streams go to files beside the run.
  pid_t Start(const std::string& name, const std::string& command) const {
    const std::string line =
        absl::StrCat("exec ", command, " >", Path(name + ".out"), " 2>", Path(name + ".err"), " </dev/null");
    const pid_t pid = fork();
    if (pid == 0) {
      execl("/bin/sh", "sh", "-c", line.c_str(), static_cast<char*>(nullptr));
      _exit(127);
    }
    return pid;
  }
  Outcome Wait(const std::string& name, pid_t pid) const {
    Outcome o;
    int status = 0;
    waitpid(pid, &status, 0);
    o.code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    o.output = ReadFile(Path(name + ".out")).value_or("");
    o.errors = ReadFile(Path(name + ".err")).value_or("");
    return o;
  }
  Outcome Run(const std::string& name, const std::string& flags) const {
    return Wait(name, Start(name, Command(name, flags)));
  }
  // The exact text of the losses in metrics.jsonl, of each step.
  std::vector<std::string> Losses(const std::string& name) const {
    std::vector<std::string> losses;
    for (absl::string_view line :
         absl::StrSplit(ReadFile(JoinPath(Path(name), "metrics.jsonl")).value_or(""), '\n')) {
      for (absl::string_view field : absl::StrSplit(line, ',')) {
        if (absl::StrContains(field, "loss\":") || absl::StrContains(field, "grad_norm\":"))
          losses.emplace_back(field);
      }
    }
    return losses;
  }
  bool Logged(const std::string& name, int steps) const {
    const std::string text = ReadFile(Path(name + ".out")).value_or("");
    return absl::StrContains(text, absl::StrCat("\"iteration\":", steps, ","));
  }
  bool WaitUntilLogged(const std::string& name, int steps) const {
    for (int i = 0; i < 1200 && !Logged(name, steps); ++i) absl::SleepFor(absl::Milliseconds(50));
    return Logged(name, steps);
  }
  // The children of the process that spawned them, by rank.
  static std::vector<pid_t> Children(pid_t parent) {
    std::vector<pid_t> pids;
    const std::string path = absl::StrCat("/proc/", parent, "/task/", parent, "/children");
    FILE* f = fopen(path.c_str(), "r");
    int pid;
    while (f != nullptr && fscanf(f, "%d", &pid) == 1) pids.push_back(pid);
    if (f != nullptr) fclose(f);
    std::vector<pid_t> by_rank(pids.size());
    for (pid_t p : pids) {
      const std::string path = absl::StrCat("/proc/", p, "/environ");
      FILE* environment = fopen(path.c_str(), "r");
      std::string all(1 << 16, '\0');
      all.resize(environment == nullptr ? 0 : fread(all.data(), 1, all.size(), environment));
      if (environment != nullptr) fclose(environment);
      for (absl::string_view v : absl::StrSplit(all, '\0')) {
        int rank = 0;
        if (absl::ConsumePrefix(&v, "RANK=") && absl::SimpleAtoi(v, &rank) &&
            rank < static_cast<int>(pids.size())) {
          by_rank[rank] = p;
        }
      }
    }
    return by_rank;
  }
  // Signals rank `victim` of `count` in the middle of a run, and expects every survivor to name it.
  void ExpectNamed(int count, int victim, int signal, const std::string& timeout,
                   const std::string& more = "") {
    const std::string name = "broken";
    const pid_t pid = Start(
        name, Command(name, absl::StrCat("--spawn=", count, " --strategy=\"dp=", count,
                                         " ep=2\" --train_iters=100000 --save_interval=2 --device_timeout=",
                                         timeout, more)));
    ASSERT_TRUE(WaitUntilLogged(name, 4)) << ReadFile(Path(name + ".err")).value_or("");
    const std::vector<pid_t> children = Children(pid);
    ASSERT_EQ(children.size(), count);
    ASSERT_EQ(kill(children[victim], signal), 0);
    const Outcome o = Wait(name, pid);
    EXPECT_EQ(o.code, 1);
    const std::string whole = absl::StrCat("process ", children[victim], " on ");
    for (int r = 0; r < count; ++r) {
      if (r == victim) continue;
      // Rank 0 says all, the others a line.
      bool named = false;
      bool mine = false;
      for (absl::string_view line : absl::StrSplit(o.errors, '\n')) {
        if (absl::StartsWith(line, "error: ") || absl::StartsWith(line, "rank ")) {
          mine = r == 0 ? absl::StartsWith(line, "error: ")
                        : absl::StartsWith(line, absl::StrCat("rank ", r, ": error: "));
        }
        named = named || (mine && absl::StrContains(line, absl::StrCat("rank ", victim)) &&
                          (victim == 0 || absl::StrContains(line, whole)));
      }
      EXPECT_TRUE(named) << "rank " << r << " does not name rank " << victim << " in\n" << o.errors;
      EXPECT_TRUE(FileExists(JoinPath(Path(name), absl::StrCat("flight/rank_", r, ".json")))) << r;
    }
    EXPECT_TRUE(FileExists(JoinPath(Path(name), absl::StrCat("flight/rank_", victim, ".json"))));
    if (victim != 0) {
      EXPECT_THAT(o.errors,
                  ::testing::AnyOf(HasSubstr("its last action was"), HasSubstr("had not begun a step")));
      EXPECT_THAT(o.errors, HasSubstr("resume with --resume="));
    }
    EXPECT_THAT(o.errors, HasSubstr(signal == SIGKILL ? "was ended by signal 9"
                                                      : "does not end by itself and is killed"));
  }

  // The variables of a process of several on this host, which meet at this port.
  static std::string Place(int rank, int count, int port) {
    return absl::StrCat("env RANK=", rank, " LOCAL_RANK=", rank, " WORLD_SIZE=", count,
                        " LOCAL_WORLD_SIZE=", count, " MASTER_ADDR=127.0.0.1 MASTER_PORT=", port, " ");
  }
  static int FreePort() {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(a);
    EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&a), size), 0);
    getsockname(fd, reinterpret_cast<sockaddr*>(&a), &size);
    close(fd);
    return ntohs(a.sin_port);
  }
  // Two processes, as a launcher of clusters starts them; the second has more variables and flags.
  std::vector<Outcome> RunTwo(const std::string& name, const std::string& variables, const std::string& flags,
                              const std::string& second_flags = "") const {
    std::vector<pid_t> pids;
    const int port = FreePort();
    for (int r = 0; r < 2; ++r) {
      pids.push_back(
          Start(absl::StrCat(name, r),
                Command(name, absl::StrCat("--strategy=\"dp=2 ep=2\" ", flags, r == 0 ? "" : second_flags),
                        Place(r, 2, port) + (r == 0 ? "" : variables))));
    }
    std::vector<Outcome> outcomes;
    for (int r = 0; r < 2; ++r) outcomes.push_back(Wait(absl::StrCat(name, r), pids[r]));
    for (const pid_t pid : pids) RemoveSharedMemory(pid);
    return outcomes;
  }
  // The emulated NCCL's, of a process that was the only one to join a communicator.
  static void RemoveSharedMemory(pid_t pid) {
    const absl::StatusOr<std::vector<std::string>> files = ListFolder("/dev/shm");
    if (!files.ok()) return;
    for (const std::string& file : *files) {
      if (!absl::StartsWith(file, absl::StrCat("switchyard-nccl-", pid, "-"))) continue;
      EXPECT_OK(RemoveTree(JoinPath("/dev/shm", file)));
    }
  }
  // Processes that work in this test's folder.
  int Left() const {
    int left = 0;
    const absl::StatusOr<std::vector<std::string>> all = ListFolder("/proc");
    for (const std::string& pid : all.value()) {
      const std::string line = ReadFile(absl::StrCat("/proc/", pid, "/cmdline")).value_or("");
      left += absl::StrContains(line, absl::StrCat("--run_dir=", folder_));
    }
    return left;
  }

  std::string folder_;
};

TEST_F(ProcessesTest, LossesAreThoseOfOneProcess) {
  struct Case {
    const char* strategy;
    int processes;
  };
  // Two stages, tensor and expert parallel; one rank a process, and two.
  for (const Case& c :
       {Case{"pp=2 dp=2 tp=2 ep=2 zero=1", 8}, Case{"pp=2 dp=2 tp=2 ep=2 zero=1", 4}, Case{"dp=2 ep=2", 2}}) {
    if (kGpus && c.processes == 8) continue;  // one a process is in the last, too
    const std::string strategy = absl::StrCat(" --train_iters=4 --strategy=\"", c.strategy, "\"");
    const std::string tag = absl::StrCat(c.processes);
    const Outcome alone = Run("alone" + tag, strategy);
    ASSERT_EQ(alone.code, 0) << alone.errors;
    const Outcome many = Run("many" + tag, absl::StrCat(strategy, " --spawn=", c.processes));
    ASSERT_EQ(many.code, 0) << many.errors;
    EXPECT_EQ(many.errors, "");
    const std::vector<std::string> want = Losses("alone" + tag), got = Losses("many" + tag);
    EXPECT_GE(want.size(), 8);
    EXPECT_EQ(got, want) << c.strategy << " in " << c.processes << " processes";
    // Only rank 0 speaks, and as one process does: progress of 4 steps, an evaluation at the end, a summary.
    const auto lines = [](const std::string& text) { return std::count(text.begin(), text.end(), '\n'); };
    EXPECT_EQ(lines(many.output), lines(alone.output)) << many.output;
    for (const char* file :
         {"config.textproto", "plan.pb", "metrics.jsonl", "checkpoint/step_00000004/manifest.json"}) {
      EXPECT_TRUE(FileExists(JoinPath(Path("many" + tag), file))) << file;
    }
    // One trace of all ranks, with as many events of each as in one process, in the order of one clock.
    const auto events = [&](const std::string& run, int rank, std::vector<double>* begin) {
      const std::string trace = ReadFile(JoinPath(Path(run), "trace.json")).value_or("");
      int count = 0;
      for (absl::string_view line : absl::StrSplit(trace, '\n')) {
        if (!absl::StartsWith(line, absl::StrCat("{\"ph\":\"X\",\"pid\":", rank, ","))) continue;
        ++count;
        const absl::string_view rest = line.substr(line.find("\"ts\":") + 5);
        double ts = -1;
        EXPECT_TRUE(absl::SimpleAtod(rest.substr(0, rest.find(',')), &ts)) << line;
        begin->push_back(ts);
      }
      return count;
    };
    double latest_begin = 0, first_end = 1e18;
    for (int rank = 0; rank < (c.processes == 2 ? 2 : 8); ++rank) {
      std::vector<double> ours, theirs;
      EXPECT_EQ(events("many" + tag, rank, &ours), events("alone" + tag, rank, &theirs)) << "rank " << rank;
      ASSERT_FALSE(ours.empty());
      latest_begin = std::max(latest_begin, *std::min_element(ours.begin(), ours.end()));
      first_end = std::min(first_end, *std::max_element(ours.begin(), ours.end()));
    }
    EXPECT_LT(latest_begin, first_end);  // all were at it together
    EXPECT_TRUE(FileExists(JoinPath(Path("many" + tag), "timeline_measured.svg")));
    // The same tensors, byte for byte.
    const std::string shard = "checkpoint/step_00000004/model-00001-of-00001.safetensors";
    EXPECT_EQ(ReadFile(JoinPath(Path("many" + tag), shard)).value_or("a"),
              ReadFile(JoinPath(Path("alone" + tag), shard)).value_or("b"));
  }
}

TEST_F(ProcessesTest, CheckpointsGoFromAnyNumberOfProcessesToAny) {
  const std::string strategy = " --strategy=\"dp=2 tp=2 ep=2 zero=1\"";
  ASSERT_EQ(Run("whole", strategy + " --train_iters=4").code, 0);
  const Outcome first = Run("first", strategy + " --train_iters=4 --spawn=4 --save_interval=2");
  ASSERT_EQ(first.code, 0) << first.errors;
  const std::vector<std::string> want = Losses("whole");
  for (const char* processes : {"", " --spawn=2", " --spawn=4"}) {
    const std::string name = absl::StrCat("resumed", absl::StripSuffix(processes, ""));
    const std::string run =
        absl::StrCat("resumed", std::string(processes).empty() ? "1" : std::string(processes).substr(9));
    const Outcome o = Run(run, absl::StrCat(strategy, processes, " --train_iters=4 --resume=", Path("first"),
                                            "/checkpoint/step_00000002"));
    ASSERT_EQ(o.code, 0) << o.errors;
    const std::vector<std::string> got = Losses(run);
    ASSERT_GE(got.size(), 4);
    ASSERT_GE(want.size(), got.size());
    EXPECT_EQ(got, std::vector<std::string>(want.end() - got.size(), want.end())) << run;
  }
}

// Gloo sees that a connection closes; NCCL waits for as long as it may.
TEST_F(ProcessesTest, AProcessThatDiesIsNamedByEverySurvivor) {
  ExpectNamed(4, 2, SIGKILL, kGpus ? "6" : "30");
}

TEST_F(ProcessesTest, AProcessThatStopsIsNamedByEverySurvivor) { ExpectNamed(4, 3, SIGSTOP, "2"); }

TEST_F(ProcessesTest, SoIsRankZero) { ExpectNamed(2, 0, SIGKILL, "30"); }

// Lines of several lengths, each with a plan of its own.
TEST_F(ProcessesTest, LengthBuckets) {
  std::string lines;
  for (int i = 0; i < 900; ++i) absl::StrAppend(&lines, std::string(4 + i * i % 24, 'a' + i % 7), "\n");
  ASSERT_OK(WriteFile(Path("text.txt"), lines));
  const std::string flags =
      " --length_buckets=8,16,32 --strategy=\"pp=2 dp=2 tp=2 ep=2 zero=1\" --train_iters=6 --eval_interval=3";
  const Outcome alone = Run("alone", flags);
  ASSERT_EQ(alone.code, 0) << alone.errors;
  const std::string metrics = ReadFile(JoinPath(Path("alone"), "metrics.jsonl")).value_or("");
  for (const char* length : {"8", "16", "32"}) {
    EXPECT_THAT(metrics, HasSubstr(absl::StrCat("\"seq_length\":", length, ",")));
  }
  for (const char* processes : {"2", "8"}) {
    const std::string name = absl::StrCat("many", processes);
    const Outcome many = Run(name, absl::StrCat(flags, " --save_interval=2 --spawn=", processes));
    ASSERT_EQ(many.code, 0) << many.errors;
    EXPECT_EQ(Losses(name), Losses("alone"));
  }
  // On from the middle, in another number of processes.
  const Outcome resumed =
      Run("resumed", absl::StrCat(flags, " --spawn=4 --resume=", Path("many2"), "/checkpoint/step_00000002"));
  ASSERT_EQ(resumed.code, 0) << resumed.errors;
  const std::vector<std::string> got = Losses("resumed"), want = Losses("alone");
  ASSERT_GE(got.size(), 8);
  EXPECT_EQ(got, std::vector<std::string>(want.end() - static_cast<int64_t>(got.size()), want.end()));
}

// Whichever plan it was in.
TEST_F(ProcessesTest, AProcessThatStopsAmongSeveralLengths) {
  std::string lines;
  for (int i = 0; i < 900; ++i) absl::StrAppend(&lines, std::string(4 + i * i % 24, 'a' + i % 7), "\n");
  ASSERT_OK(WriteFile(Path("text.txt"), lines));
  ExpectNamed(2, 1, SIGSTOP, "2", " --length_buckets=8,16,32");
}

TEST_F(ProcessesTest, AWrongNumberOfProcessesIsRefused) {
  const Outcome o = Run("odd", "--strategy=\"dp=4 ep=2\" --train_iters=1 --spawn=3");
  EXPECT_EQ(o.code, 1);
  EXPECT_THAT(o.errors, HasSubstr("3 processes cannot share the 4 ranks"));
  EXPECT_THAT(o.errors, HasSubstr("1, 2, 4"));
  const Outcome bad = Run("bad", "--strategy=\"dp=4 ep=3\" --train_iters=1 --spawn=4");
  EXPECT_EQ(bad.code, 1);
  EXPECT_THAT(bad.errors, HasSubstr("num_experts = 8"));
  EXPECT_THAT(bad.errors, Not(HasSubstr("rank 1")));  // said once
  EXPECT_FALSE(IsFolder(Path("bad")));
}

TEST_F(ProcessesTest, AProcessThatNeverComesIsNamed) {
  const std::string flags = "--strategy=\"dp=2 ep=2\" --train_iters=1 --connect_timeout=1";
  const Outcome o = Wait("alone", Start("alone", Command("alone", flags, Place(0, 2, FreePort()))));
  EXPECT_EQ(o.code, 1);
  EXPECT_THAT(o.errors, HasSubstr("rank 0 waited 1s for 2 processes to meet at 127.0.0.1:"));
  EXPECT_THAT(o.errors, HasSubstr("missing: 1"));
  EXPECT_FALSE(IsFolder(Path("alone")));
}

// One of two has no text to train on: the other learns it while it still waits for it.
TEST_F(ProcessesTest, WhatOneLacksEndsAllAndIsSaidOnce) {
  ASSERT_OK(WriteFile(Path("short.txt"), "x"));
  const absl::Time start = absl::Now();
  const std::vector<Outcome> two = RunTwo("one", "", "", absl::StrCat(" --data_path=", Path("short.txt")));
  EXPECT_LT(absl::Now() - start, absl::Seconds(40)) << "waited for the one that gave up";
  EXPECT_EQ(two[0].code, 1);
  EXPECT_EQ(two[1].code, 1);
  EXPECT_THAT(two[0].errors, HasSubstr("error: rank 1 ended the run: "));
  EXPECT_THAT(two[0].errors, HasSubstr("short.txt"));
  EXPECT_EQ(two[1].errors, "");
}

// Where the text lies may differ, what is in it may not, nor what is asked for.
TEST_F(ProcessesTest, ProcessesThatAreGivenOtherThingsTrainNothing) {
  const std::string text = ReadFile(Path("text.txt")).value();
  ASSERT_OK(WriteFile(Path("same.txt"), text));
  ASSERT_OK(WriteFile(Path("other.txt"), text.substr(1)));
  const auto data = [&](const std::string& name) { return absl::StrCat(" --data_path=", Path(name)); };
  for (const Outcome& o : RunTwo("same", "", "--train_iters=1", data("same.txt")))
    EXPECT_EQ(o.code, 0) << o.errors;
  const std::vector<Outcome> two = RunTwo("two", "", "--train_iters=1", data("other.txt") + " --lr=0.01");
  for (const Outcome& o : two) EXPECT_EQ(o.code, 1);
  for (const char* part :
       {"do not have the same, so nothing was trained", "\n       training text: ", "text.txt (byte-",
        " in process 0; ", "other.txt (byte-", " in process 1", "\n       lr: ", "; 0.01 in process 1"}) {
    EXPECT_THAT(two[0].errors, HasSubstr(part));
  }
  EXPECT_EQ(two[1].errors, "");  // rank 0 has said it
  EXPECT_FALSE(IsFolder(Path("two")));
}

TEST_F(ProcessesTest, TheFirstInterruptSavesAndStopsAll) {
  const pid_t pid =
      Start("stopped", Command("stopped", "--strategy=\"dp=2 ep=2\" --train_iters=100000 --spawn=2"));
  ASSERT_TRUE(WaitUntilLogged("stopped", 2));
  kill(pid, SIGINT);
  const Outcome o = Wait("stopped", pid);
  EXPECT_EQ(o.code, kExitStopped) << o.errors;
  EXPECT_TRUE(IsFolder(JoinPath(Path("stopped"), "checkpoint")));
}

// Started one by one, as a launcher of clusters does.
TEST_F(ProcessesTest, TasksOfSlurm) {
  const std::string flags = "--strategy=\"dp=2 ep=2\" --train_iters=3";
  ASSERT_EQ(Run("alone", flags).code, 0);
  std::vector<pid_t> pids;
  const int port = FreePort();
  for (int r = 0; r < 2; ++r) {
    pids.push_back(Start(
        absl::StrCat("slurm", r),
        Command("slurm", flags,
                absl::StrCat("env SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_LOCALID=", r,
                             " SLURM_PROCID=", r, " SLURM_JOB_NODELIST=localhost MASTER_PORT=", port))));
  }
  for (int r = 0; r < 2; ++r) {
    const Outcome o = Wait(absl::StrCat("slurm", r), pids[r]);
    EXPECT_EQ(o.code, 0) << o.errors;
    EXPECT_EQ(o.output.empty(), r != 0);
  }
  EXPECT_EQ(Losses("slurm"), Losses("alone"));
}

TEST_F(ProcessesTest, AScriptOfSlurmWithoutSrunIsTold) {
  const Outcome o =
      Wait("script", Start("script", Command("script", "--train_iters=1",
                                             "env SLURM_NTASKS=2 SLURM_PROCID=0 SLURM_LOCALID=0")));
  EXPECT_EQ(o.code, 1);
  EXPECT_THAT(o.errors, HasSubstr("put srun before the command"));
  EXPECT_FALSE(IsFolder(Path("script")));
}

#ifdef ON_EMULATED_GPUS

// Each process is given the same GPU, and counts as a host of its own to NCCL, as ./run.sh hostid does it.
TEST_F(ProcessesTest, ProcessesThatCountAsHostsShareAGpu) {
  const std::string flags = "--strategy=\"dp=2 ep=2\" --train_iters=2";
  ASSERT_EQ(Run("alone", flags).code, 0);
  for (const bool hosts : {true, false}) {
    const std::string name = hosts ? "hosts" : "one";
    std::vector<pid_t> pids;
    const int port = FreePort();
    for (int r = 0; r < 2; ++r) {
      const std::string variables = absl::StrCat(Place(r, 2, port), "CUDA_VISIBLE_DEVICES=0",
                                                 hosts ? absl::StrCat(" NCCL_HOSTID=host", r) : "");
      pids.push_back(Start(absl::StrCat(name, r), Command(name, flags, variables)));
    }
    for (int r = 0; r < 2; ++r) {
      const Outcome o = Wait(absl::StrCat(name, r), pids[r]);
      EXPECT_EQ(o.code, hosts ? 0 : 1) << o.errors;
      if (!hosts) {
        EXPECT_THAT(o.errors, HasSubstr("Duplicate GPU"));
      }
    }
    if (hosts) {
      EXPECT_EQ(Losses(name), Losses("alone"));
    }
  }
}

// NCCL leaves the other one waiting.
TEST_F(ProcessesTest, AGpuRankThatDiesInAnExchangeIsNamed) {
  const std::vector<Outcome> two =
      RunTwo("dies", "EMULATED_NCCL_FAULT=kill:60", "--device_timeout=4 --train_iters=100000");
  EXPECT_EQ(two[0].code, 1);
  EXPECT_EQ(two[1].code, 1000 + SIGKILL);
  for (const char* part : {"error: step 1, rank 0 (stage 0, dp 0) waits ", "action F0.", "does not answer",
                           "group [0, 1] waited 4s for all to enter; rank 0 in all_", " for 'layers.",
                           "never entered: 1", "flight record of all ranks"}) {
    EXPECT_THAT(two[0].errors, HasSubstr(part));
  }
  EXPECT_EQ(Left(), 0);
}

TEST_F(ProcessesTest, AGpuRankThatDiesBeforeItsFirstExchangeIsNamed) {
  const std::vector<Outcome> two =
      RunTwo("dies", "EMULATED_NCCL_FAULT=kill:0", "--device_timeout=20 --train_iters=100000");
  EXPECT_EQ(two[0].code, 1);
  EXPECT_EQ(two[1].code, 1000 + SIGKILL);
  EXPECT_THAT(two[0].errors, HasSubstr("lost the connection to rank 1; its process has ended"));
  EXPECT_EQ(Left(), 0);
}

// Its process lives, though a thread never comes back from NCCL: it says so, and ends like the others.
TEST_F(ProcessesTest, AGpuRankThatHangsInAnExchangeEndsToo) {
  const std::vector<Outcome> two =
      RunTwo("hangs", "EMULATED_NCCL_FAULT=hang:60", "--device_timeout=4 --train_iters=100000");
  for (const Outcome& o : two) EXPECT_EQ(o.code, 1);
  EXPECT_THAT(two[0].errors, HasSubstr("group [0, 1] waited 4s for all to enter; rank 0 in all_"));
  EXPECT_THAT(two[0].errors, HasSubstr("never entered: 1"));
  EXPECT_THAT(two[1].errors, HasSubstr("rank 1: error: step 1"));
  EXPECT_EQ(Left(), 0);
}

TEST_F(ProcessesTest, GpusWithoutNcclAreRefusedOnce) {
  const auto lines = [](const std::string& text) { return std::count(text.begin(), text.end(), '\n'); };
  const std::string flags = "--strategy=\"dp=4 ep=2\" --train_iters=1 --spawn=4";
  for (const auto& [version, why] : {std::pair{"0", "NCCL, by which GPUs exchange data, was not found"},
                                     {"2708", "is NCCL 2.7.8; 2.18.0 or newer is needed"}}) {
    const std::string name = absl::StrCat("nccl", version);
    const Outcome o =
        Wait(name, Start(name, Command(name, flags, absl::StrCat("env EMULATED_NCCL_VERSION=", version))));
    EXPECT_EQ(o.code, 1);
    EXPECT_THAT(o.errors, ::testing::StartsWith("error: --device=cuda: "));
    EXPECT_THAT(o.errors, HasSubstr(why));
    EXPECT_EQ(lines(o.errors), 1) << o.errors;
    EXPECT_EQ(Left(), 0);
  }
  // Of two machines, one has none.
  const std::vector<Outcome> two = RunTwo("one", "EMULATED_NCCL_VERSION=0", "--train_iters=1");
  for (const Outcome& o : two) EXPECT_EQ(o.code, 1);
  EXPECT_THAT(two[0].errors, ::testing::StartsWith("error: process 1 of 2: --device=cuda: NCCL, by which"));
  EXPECT_EQ(lines(two[0].errors), 1) << two[0].errors;
  EXPECT_EQ(two[1].errors, "");
}

TEST_F(ProcessesTest, FewerGpusThanRanksIsSaid) {
  setenv("CUDA_VISIBLE_DEVICES", "0,1,2", 1);
  const Outcome o = Run("few", "--strategy=\"dp=4 ep=2\" --train_iters=1 --spawn=4");
  EXPECT_EQ(o.code, 1);
  EXPECT_THAT(o.errors, HasSubstr("--device=cuda: 4 ranks in 4 processes on this machine, and 3 GPUs"));
}

#endif

// Two hosts, as far as the network goes: namespaces with an address each, joined by a pair of interfaces.
class Namespaces {
 public:
  Namespaces() {
    const std::string a = Name(0), b = Name(1);
    made_ = Sh(absl::StrCat(
        "ip netns add ", a, " && ip netns add ", b, " && ip link add ", Link(0), " type veth peer name ",
        Link(1), " && ip link set ", Link(0), " netns ", a, " && ip link set ", Link(1), " netns ", b,
        " && ip -n ", a, " addr add 10.77.0.1/24 dev ", Link(0), " && ip -n ", b,
        " addr add 10.77.0.2/24 dev ", Link(1), " && ip -n ", a, " link set ", Link(0), " up && ip -n ", b,
        " link set ", Link(1), " up && ip -n ", a, " link set lo up && ip -n ", b, " link set lo up"));
  }
  ~Namespaces() {
    for (int i = 0; i < 2; ++i) Sh("ip netns del " + Name(i));
  }
  bool made() const { return made_; }
  std::string Name(int i) const { return absl::StrCat("moe", getpid(), i == 0 ? "a" : "b"); }
  bool Cut() const { return Sh(absl::StrCat("ip -n ", Name(1), " link set ", Link(1), " down")); }

 private:
  std::string Link(int i) const { return absl::StrCat("mv", getpid(), i == 0 ? "a" : "b"); }
  static bool Sh(const std::string& command) {
    return std::system((command + " >/dev/null 2>&1").c_str()) == 0;
  }
  bool made_ = false;
};

TEST_F(ProcessesTest, OverSeveralAddresses) {
  const Namespaces hosts;
  if (!hosts.made()) GTEST_SKIP() << "network namespaces are not permitted here";
  const std::string flags = "--strategy=\"dp=2 tp=2 ep=2\" --train_iters=3";
  ASSERT_EQ(Run("alone", flags).code, 0);
  std::vector<pid_t> pids;
  const auto start = [&](const std::string& name, const std::string& flags) {
    pids.clear();
    for (int r = 0; r < 4; ++r) {
      pids.push_back(Start(absl::StrCat(name, r),
                           Command(name, flags,
                                   absl::StrCat("env RANK=", r, " LOCAL_RANK=", r % 2,
                                                " WORLD_SIZE=4 MASTER_ADDR=10.77.0.1 MASTER_PORT=29517 "
                                                "SWITCHYARD_JOB_TOKEN=a_secret_of_this_test ip netns exec ",
                                                hosts.Name(r / 2)))));
    }
  };
  start("hosts", flags);
  for (int r = 0; r < 4; ++r) {
    const Outcome o = Wait(absl::StrCat("hosts", r), pids[r]);
    EXPECT_EQ(o.code, 0) << o.errors;
  }
  EXPECT_EQ(Losses("hosts"), Losses("alone"));

  // The network between the hosts goes away: nobody is dead, but all notice within the timeout.
  start("cut", "--strategy=\"dp=2 tp=2 ep=2\" --train_iters=100000 --device_timeout=5");
  ASSERT_TRUE(WaitUntilLogged("cut0", 2)) << ReadFile(Path("cut0.err")).value_or("");
  ASSERT_TRUE(hosts.Cut());
  for (int r = 0; r < 4; ++r) {
    const Outcome o = Wait(absl::StrCat("cut", r), pids[r]);
    EXPECT_EQ(o.code, 1) << r;
    EXPECT_THAT(o.errors, HasSubstr("error: ")) << r;
  }
}

}  // namespace
}  // namespace moe::tools
