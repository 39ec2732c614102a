#include "moe/comm/job/spawn.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "moe/base/exit_code.h"
#include "moe/base/running_time.h"
#include "moe/base/stop_request.h"
#include "moe/comm/job/token.h"
#include "moe/comm/store/store_server.h"
#include "moe/comm/store/tcp_store.h"

extern char** environ;

namespace moe::comm {
namespace {

constexpr char kParent[] = "SWITCHYARD_SPAWNED";  // in children: the process that started them
// For the others to say what they know of a child that is gone, and for all to end once a user insists.
constexpr absl::Duration kGrace = absl::Seconds(20), kShortGrace = absl::Seconds(2);

std::atomic<bool> suspend{false};  // Ctrl-Z

void OnSuspend(int) { suspend = true; }

pid_t Start(char** argv, const std::vector<std::pair<std::string, std::string>>& variables) {
  std::vector<std::string> environment;
  for (char** e = environ; *e != nullptr; ++e) {
    bool replaced = false;
    for (const auto& [name, value] : variables) replaced = replaced || absl::StartsWith(*e, name + "=");
    if (!replaced) environment.push_back(*e);
  }
  for (const auto& [name, value] : variables) environment.push_back(absl::StrCat(name, "=", value));
  std::vector<char*> pointers;
  for (std::string& e : environment) pointers.push_back(e.data());
  pointers.push_back(nullptr);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  // A group of its own: Ctrl-C reaches the parent alone, which passes it on once.
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  posix_spawnattr_setpgroup(&attributes, 0);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, "/proc/self/exe", nullptr, &attributes, argv, pointers.data());
  posix_spawnattr_destroy(&attributes);
  errno = error;
  return error == 0 ? pid : -1;
}

// The processes of the job, by rank.
class Children {
 public:
  Children(Store* store, std::ostream& errors) : store_(store), errors_(errors) {}

  void Add(pid_t pid) { pids_.push_back(pid); }
  int running() const {
    return static_cast<int>(std::count_if(pids_.begin(), pids_.end(), [](pid_t p) { return p > 0; }));
  }
  void Tell(int signal) const {
    for (const pid_t pid : pids_) {
      if (pid > 0) kill(pid, signal);
    }
  }
  // Those that are left, for good.
  void Kill() {
    Tell(SIGKILL);
    for (pid_t& pid : pids_) {
      if (pid > 0) waitpid(pid, nullptr, 0);
      pid = 0;
    }
  }
  void SayKilled() const {
    for (size_t r = 0; r < pids_.size(); ++r) {
      if (pids_[r] <= 0) continue;
      errors_ << "rank " << r << " (process " << pids_[r] << ") does not end by itself and is killed"
              << std::endl;
    }
  }
  // Takes note of who has ended.
  void Look() {
    for (size_t r = 0; r < pids_.size(); ++r) {
      int status = 0;
      if (pids_[r] <= 0 || waitpid(pids_[r], &status, WNOHANG | WUNTRACED | WCONTINUED) != pids_[r]) continue;
      if (WIFSTOPPED(status)) {
        if (!suspend) {
          errors_ << "rank " << r << " (process " << pids_[r] << ") is stopped ("
                  << strsignal(WSTOPSIG(status)) << "); the others wait for it, with patience" << std::endl;
        }
        continue;
      }
      if (WIFCONTINUED(status)) continue;
      pids_[r] = 0;
      Ended(static_cast<int64_t>(r), status);
    }
  }
  bool failed() const { return code_ == kExitError; }
  int code() const { return code_; }

 private:
  void Ended(int64_t rank, int status) {
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : kExitError;
    if (WIFSIGNALED(status)) {
      const int signal = WTERMSIG(status);
      if (signal == SIGTERM || signal == SIGINT || signal == SIGHUP || signal == SIGUSR1 ||
          signal == SIGUSR2) {
        code = kExitStopped;  // which came before the child listened
      } else {
        const std::string how = absl::StrCat("was ended by signal ", signal, " (", strsignal(signal), ")");
        if (!failed()) errors_ << "rank " << rank << " " << how << std::endl;
        AnnounceAbort(store_, rank, absl::UnavailableError(absl::StrCat("its process ", how)));
      }
    } else if (code != kExitDone && code != kExitStopped && code != kExitAtOnce) {
      AnnounceAbort(store_, rank,
                    absl::UnavailableError(absl::StrCat("its process ended with exit code ", code)));
      code = kExitError;
    }
    if (code_ == kExitDone || code == kExitError || (code == kExitAtOnce && code_ == kExitStopped)) {
      if (code != kExitDone) code_ = code;
    }
  }

  Store* const store_;
  std::ostream& errors_;
  std::vector<pid_t> pids_;  // 0: has ended
  int code_ = kExitDone;
};

}  // namespace

void EndWithParent() {
  const char* const parent = std::getenv(kParent);
  pid_t pid = 0;
  if (parent == nullptr || !absl::SimpleAtoi(parent, &pid)) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != pid) _exit(kExitError);
}

int SpawnProcesses(int count, char** argv, std::ostream& errors) {
  StopRequest& stop = StopRequest::Listen();
  stop.EndsByCaller();
  struct sigaction act {};
  if (sigaction(SIGTSTP, nullptr, &act) == 0 && act.sa_handler != SIG_IGN) {
    act.sa_handler = OnSuspend;
    act.sa_flags = SA_RESTART;
    sigaction(SIGTSTP, &act, nullptr);
  }
  const std::string token = RandomToken();
  // The launcher that may have started this process has no name for the job of its children.
  const std::string shown = TokenOfJob(token, "");
  const auto server =
      StoreServer::Start({.token = shown, .members = count, .max_connections = 4 * count + 16});
  absl::StatusOr<std::unique_ptr<TcpStore>> store =
      server.ok() ? TcpStore::Connect({SocketAddress{.port = (*server)->port()}}, shown, absl::Seconds(30),
                                      "this process")
                  : server.status();
  if (!store.ok()) {
    errors << "error: " << store.status().message() << std::endl;
    return kExitError;
  }
  Children children(store->get(), errors);
  for (int r = 0; r < count; ++r) {
    const pid_t pid = Start(argv, {{"RANK", absl::StrCat(r)},
                                   {"LOCAL_RANK", absl::StrCat(r)},
                                   {"WORLD_SIZE", absl::StrCat(count)},
                                   {"LOCAL_WORLD_SIZE", absl::StrCat(count)},
                                   {"MASTER_ADDR", "127.0.0.1"},
                                   {"MASTER_PORT", absl::StrCat((*server)->port())},
                                   {kParent, absl::StrCat(getpid())},
                                   {"SWITCHYARD_JOB_TOKEN", token}});
    if (pid < 0) {
      errors << "error: cannot start process " << r << " of " << count << ": " << strerror(errno)
             << (errno == EAGAIN ? " (see ulimit -u)" : "") << std::endl;
      children.Kill();
      return kExitError;
    }
    children.Add(pid);
  }
  bool told = false, insisted = false;
  absl::Duration limit = absl::InfiniteDuration();
  while (children.running() > 0) {
    if (suspend) {
      children.Tell(SIGSTOP);
      raise(SIGSTOP);  // until somebody continues this process
      suspend = false;
      children.Tell(SIGCONT);
    }
    if ((stop.asked() || children.code() == kExitStopped) && !told) {
      told = true;
      children.Tell(stop.by() == "SIGINT" ? SIGINT : SIGTERM);
    }
    if (stop.insists() && !insisted) {
      insisted = true;
      children.Tell(SIGINT);
      limit = std::min(limit, RunningTime() + kShortGrace);
    }
    const bool known = children.failed();
    children.Look();
    if (children.failed() && !known) limit = std::min(limit, RunningTime() + kGrace);
    if (RunningTime() >= limit && children.running() > 0) {
      children.SayKilled();
      children.Kill();
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
  return insisted ? kExitAtOnce : children.code();
}

}  // namespace moe::comm
