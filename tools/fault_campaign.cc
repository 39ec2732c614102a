// fault_campaign: jobs that are stopped, killed and kept from writing, at every place where that can happen,
// and what became of them, as a table. See --help; docs/reliability.md has the result.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "moe/base/exit_code.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "tools/tool.h"
#include "tools/working_directory.h"

ABSL_FLAG(std::string, program, "", "compile_and_train; empty: the one beside this program.");
ABSL_FLAG(std::string, folder, "/tmp/fault_campaign", "Where the runs are; emptied at first.");
ABSL_FLAG(int, times, 20, "How often each fault is made, where its moment is drawn.");
ABSL_FLAG(uint64_t, seed, 1, "Of the draws.");
ABSL_FLAG(std::vector<std::string>, only, {}, "Parts to run: stop, kill, pause; none: all.");

namespace moe::tools {
namespace {

constexpr char kModel[] =
    " --num_layers=2 --hidden_size=32 --num_attention_heads=4 --num_query_groups=2 --moe_ffn_hidden_size=32"
    " --seq_length=32 --global_batch_size=8 --micro_batch_size=2 --log_interval=1";

// A run in a session of its own, and all of its processes.
class Job {
 public:
  Job(std::string program, std::string folder) : program_(std::move(program)), folder_(std::move(folder)) {}

  std::string Path(const std::string& name) const { return JoinPath(folder_, name); }
  std::string run() const { return Path("run"); }
  std::string output() const { return ReadFile(Path("out")).value_or(""); }
  std::string errors() const { return ReadFile(Path("err")).value_or(""); }

  absl::Status Clear() {
    RETURN_IF_ERROR(RemoveTree(folder_));
    RETURN_IF_ERROR(MakeFolders(folder_));
    std::string text;
    for (int i = 0; i < 3000; ++i) absl::StrAppend(&text, "the ", i % 13, " quick brown foxes\n");
    return WriteFile(Path("text.txt"), text);
  }
  void Start(const std::string& flags) {
    const std::string line =
        absl::StrCat("exec ", program_, kModel, " --data_path=", Path("text.txt"), " --run_dir=", run(), " ",
                     flags, " >", Path("out"), " 2>", Path("err"), " </dev/null");
    begin_ = absl::Now();
    pid_ = fork();
    if (pid_ == 0) {
      setsid();
      execl("/bin/sh", "sh", "-c", line.c_str(), static_cast<char*>(nullptr));
      _exit(127);
    }
  }
  // The exit code, 1000 and more for a signal; -1 if it does not end within `limit`, and is killed.
  int Wait(absl::Duration limit) {
    int status = 0;
    const absl::Time end = absl::Now() + limit;
    while (waitpid(pid_, &status, WNOHANG) == 0) {
      if (absl::Now() > end) {
        Send(SIGKILL);
        waitpid(pid_, nullptr, 0);
        return -1;
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  bool Await(const std::function<bool()>& seen) const {
    for (const absl::Time end = absl::Now() + absl::Seconds(60); absl::Now() < end;) {
      if (seen()) return true;
      absl::SleepFor(absl::Milliseconds(2));
    }
    return false;
  }
  bool AwaitOutput(const std::string& text) const {
    return Await([&] { return absl::StrContains(output(), text); });
  }
  // Of runs that speak JSON.
  bool AwaitStep(int step) const { return AwaitOutput(absl::StrCat("\"iteration\":", step, ",")); }
  // The parent first, then the children by number.
  std::vector<pid_t> Processes() const {
    std::vector<pid_t> pids;
    for (const std::string& name : ListFolder("/proc").value_or(std::vector<std::string>())) {
      pid_t pid = 0;
      const std::string line = ReadFile(absl::StrCat("/proc/", name, "/cmdline")).value_or("");
      if (absl::SimpleAtoi(name, &pid) && absl::StartsWith(line, program_) &&
          absl::StrContains(line, absl::StrCat("--run_dir=", run()))) {
        pids.push_back(pid);
      }
    }
    std::sort(pids.begin(), pids.end(), [&](pid_t a, pid_t b) {
      return (b == pid_) < (a == pid_) || (a != pid_ && b != pid_ && a < b);
    });
    return pids;
  }
  void Send(int signal) const {
    for (const pid_t pid : Processes()) kill(pid, signal);
  }
  // Whether it can go on for two steps from where it is.
  bool Resumes() {
    int64_t step = 0;
    for (const std::string& name :
         ListFolder(JoinPath(run(), "checkpoint")).value_or(std::vector<std::string>())) {
      int64_t at = 0;
      if (absl::SimpleAtoi(absl::StripPrefix(name, "step_"), &at)) step = std::max(step, at);
    }
    const std::string flags = absl::StrCat("--train_iters=", step + 2, " --strategy=\"dp=4 ep=2\" --quiet");
    Start(step > 0 ? absl::StrCat(flags, " --resume=", run()) : flags);
    return Wait(absl::Seconds(120)) == kExitDone;
  }
  pid_t pid() const { return pid_; }

 private:
  const std::string program_, folder_;
  pid_t pid_ = -1;
  absl::Time begin_;
};

// A line of the table.
struct Row {
  std::string fault;
  int made = 0, as_documented = 0, resumed = 0, left = 0;
  double slowest = 0;
  std::vector<std::string> odd;  // what happened instead

  void Print() const {
    std::cout << absl::StreamFormat("%-44s %5d %14d %8d %10d %8.1f s\n", fault, made, as_documented, resumed,
                                    left, slowest);
    for (const std::string& o : odd) std::cout << "    " << o << "\n";
    std::cout << std::flush;
  }
};

void PrintHeader() {
  std::cout << absl::StreamFormat("%-44s %5s %14s %8s %10s %10s\n", "fault", "times", "code as stated",
                                  "resumed", "left over", "slowest");
}

using Moment = std::function<bool(const Job&, std::mt19937_64&)>;  // true: now

struct Phase {
  const char* name;
  const char* flags;
  Moment moment;
};

// A time within about `milliseconds` after what has been awaited.
void Later(std::mt19937_64& rng, int milliseconds) {
  absl::SleepFor(absl::Milliseconds(rng() % milliseconds));
}

std::vector<Phase> Phases() {
  return {
      {"compiling", "--train_iters=100000 --num_layers=8 --strategy=\"dp=4 ep=2 zero=1\"",
       [](const Job& job, std::mt19937_64& rng) {
         const bool begun = job.AwaitOutput("\nmesh ");
         Later(rng, 400);
         return begun && !absl::StrContains(job.output(), "\ntrain ");
       }},
      {"training", "--train_iters=100000 --json --strategy=\"dp=4 ep=2\"",
       [](const Job& job, std::mt19937_64& rng) {
         const bool begun = job.AwaitStep(3);
         Later(rng, 300);
         return begun;
       }},
      {"saving", "--train_iters=100000 --json --save_interval=1 --strategy=\"dp=4 ep=2\"",
       [](const Job& job, std::mt19937_64& rng) {
         if (!job.AwaitStep(3)) return false;
         Later(rng, 200);
         return job.Await([&] {
           for (const std::string& name :
                ListFolder(JoinPath(job.run(), "checkpoint")).value_or(std::vector<std::string>())) {
             if (absl::StrContains(name, ".tmp.")) return true;
           }
           return false;
         });
       }},
      {"evaluating", "--train_iters=100000 --json --eval_interval=1 --strategy=\"dp=4 ep=2\"",
       [](const Job& job, std::mt19937_64& rng) {
         const bool begun = job.AwaitStep(2);
         Later(rng, 100);
         return begun;
       }},
  };
}

// SIGTERM to every process of a job at once, and again half a second later where it is still there.
absl::Status StopAll(Job& job, std::mt19937_64& rng, int times) {
  for (const Phase& phase : Phases()) {
    Row row;
    row.fault = absl::StrCat("SIGTERM to all 5 processes while ", phase.name);
    while (row.made < times) {
      RETURN_IF_ERROR(job.Clear());
      job.Start(absl::StrCat(phase.flags, " --spawn=4"));
      if (!phase.moment(job, rng)) {  // it came too late, or never
        const std::string errors = job.errors();
        job.Send(SIGKILL);
        job.Wait(absl::Seconds(10));
        if (!errors.empty()) return absl::FailedPreconditionError(absl::StrCat(phase.name, ": ", errors));
        continue;
      }
      ++row.made;
      job.Send(SIGTERM);
      const absl::Time told = absl::Now();
      absl::SleepFor(absl::Milliseconds(rng() % 200));
      job.Send(SIGTERM);
      const int code = job.Wait(absl::Seconds(30));
      const double seconds = absl::ToDoubleSeconds(absl::Now() - told);
      row.slowest = std::max(row.slowest, seconds);
      row.as_documented += code == kExitStopped;
      if (code != kExitStopped || seconds > 5) {
        row.odd.push_back(absl::StrCat("code ", code, " after ", seconds, " s: ", job.errors()));
      }
      row.left += static_cast<int>(job.Processes().size());
      job.Send(SIGKILL);
      row.resumed += job.Resumes();
    }
    row.Print();
  }
  return absl::OkStatus();
}

// One of four processes is killed, or stopped for good, at a time that is drawn: within some exchange.
absl::Status LoseOne(Job& job, std::mt19937_64& rng, int times) {
  for (const int signal : {SIGKILL, SIGSTOP}) {
    for (const Phase& phase : Phases()) {
      Row row;
      row.fault = absl::StrCat(signal == SIGKILL ? "SIGKILL" : "SIGSTOP", " of 1 of 4 while ", phase.name);
      while (row.made < times) {
        RETURN_IF_ERROR(job.Clear());
        job.Start(absl::StrCat(phase.flags, " --spawn=4 --device_timeout=2"));
        if (!phase.moment(job, rng)) {
          job.Send(SIGKILL);
          job.Wait(absl::Seconds(10));
          continue;
        }
        const std::vector<pid_t> all = job.Processes();
        if (all.size() != 5) {
          job.Send(SIGKILL);
          job.Wait(absl::Seconds(10));
          continue;
        }
        ++row.made;
        const absl::Time then = absl::Now();
        kill(all[1 + rng() % 4], signal);
        const int code = job.Wait(absl::Seconds(90));
        row.slowest = std::max(row.slowest, absl::ToDoubleSeconds(absl::Now() - then));
        row.as_documented += code == kExitError;
        if (code != kExitError) row.odd.push_back(absl::StrCat("code ", code, ": ", job.errors()));
        row.left += static_cast<int>(job.Processes().size());
        job.Send(SIGKILL);
        row.resumed += job.Resumes();
      }
      row.Print();
    }
  }
  return absl::OkStatus();
}

// All processes are stopped for longer than --device_timeout, and go on.
absl::Status PauseAll(Job& job, std::mt19937_64& rng, int times) {
  for (const char* processes : {"", " --spawn=4"}) {
    Row row;
    row.fault =
        absl::StrCat("a pause of 4 s with --device_timeout=1", *processes == 0 ? ", 1 process" : ", 5");
    for (; row.made < times; ++row.made) {
      RETURN_IF_ERROR(job.Clear());
      job.Start(
          absl::StrCat("--train_iters=60 --json --device_timeout=1 --strategy=\"dp=4 ep=2\" ", processes));
      if (!job.AwaitStep(3)) return absl::FailedPreconditionError(job.errors());
      Later(rng, 200);
      const absl::Time then = absl::Now();
      job.Send(SIGSTOP);
      absl::SleepFor(absl::Seconds(4));
      job.Send(SIGCONT);
      const int code = job.Wait(absl::Seconds(90));
      row.slowest = std::max(row.slowest, absl::ToDoubleSeconds(absl::Now() - then));
      row.as_documented += code == kExitDone;
      if (code != kExitDone) row.odd.push_back(absl::StrCat("code ", code, ": ", job.errors()));
      row.left += static_cast<int>(job.Processes().size());
      job.Send(SIGKILL);
      row.resumed += job.Resumes();
    }
    row.Print();
  }
  return absl::OkStatus();
}

absl::Status Run(const std::string& self) {
  RETURN_IF_ERROR(EnterWorkingDirectory());
  std::string program = absl::GetFlag(FLAGS_program);
  if (program.empty()) program = JoinPath(self.substr(0, self.find_last_of('/')), "compile_and_train");
  if (!FileExists(program)) return absl::NotFoundError(absl::StrCat("there is no program ", program));
  const std::map<std::string, absl::Status (*)(Job&, std::mt19937_64&, int)> parts = {
      {"stop", &StopAll}, {"kill", &LoseOne}, {"pause", &PauseAll}};
  std::vector<std::string> only = absl::GetFlag(FLAGS_only);
  if (only.empty()) only = {"stop", "kill", "pause"};
  Job job(program, absl::GetFlag(FLAGS_folder));
  std::mt19937_64 rng(absl::GetFlag(FLAGS_seed));
  PrintHeader();
  for (const std::string& part : only) {
    const auto it = parts.find(part);
    if (it == parts.end()) {
      return absl::InvalidArgumentError(absl::StrCat("--only=", part, ": legal are stop, kill and pause"));
    }
    RETURN_IF_ERROR(it->second(job, rng, absl::GetFlag(FLAGS_times)));
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace moe::tools

int main(int argc, char** argv) {
  moe::tools::BeginTool();
  absl::SetProgramUsageMessage(
      "Stops, kills and pauses small jobs at drawn moments, and prints what became of them.\n"
      "  fault_campaign --only=stop --times=20");
  absl::ParseCommandLine(argc, argv);
  return moe::tools::EndTool(moe::tools::Run(argv[0]));
}
