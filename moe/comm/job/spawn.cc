#include "moe/comm/job/spawn.h"

#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <ostream>
#include <random>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "moe/comm/store/grpc_store.h"

extern char** environ;

namespace moe::comm {
namespace {

std::atomic<int> pass_on{0};  // a signal that the children have not been told of

void OnSignal(int signal) { pass_on = signal; }

std::string RandomToken() {
  std::random_device random;
  std::string token;
  for (int i = 0; i < 4; ++i) absl::StrAppendFormat(&token, "%08x", random());
  return token;
}

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
  return error == 0 ? pid : -1;
}

}  // namespace

void EndWithParent() { prctl(PR_SET_PDEATHSIG, SIGKILL); }

int SpawnProcesses(int count, char** argv, const SpawnOptions& options, std::ostream& errors) {
  const std::string token = RandomToken();
  const auto server = StoreServer::Start({.token = token, .max_connections = 4 * count + 16});
  if (!server.ok()) {
    errors << "error: " << server.status().message() << std::endl;
    return 1;
  }
  struct sigaction act {};
  act.sa_handler = OnSignal;
  sigaction(SIGINT, &act, nullptr);
  sigaction(SIGTERM, &act, nullptr);
  std::vector<pid_t> children;
  const auto tell = [&](int signal) {
    for (pid_t pid : children) {
      if (pid > 0) kill(pid, signal);
    }
  };
  for (int r = 0; r < count; ++r) {
    const pid_t pid = Start(argv, {{"RANK", absl::StrCat(r)},
                                   {"LOCAL_RANK", absl::StrCat(r)},
                                   {"WORLD_SIZE", absl::StrCat(count)},
                                   {"LOCAL_WORLD_SIZE", absl::StrCat(count)},
                                   {"MASTER_ADDR", "127.0.0.1"},
                                   {"MASTER_PORT", absl::StrCat((*server)->port())},
                                   {"SWITCHYARD_SPAWNED", "1"},
                                   {"SWITCHYARD_JOB_TOKEN", token}});
    if (pid < 0) {
      errors << "error: cannot start process " << r << " of " << count << std::endl;
      tell(SIGKILL);
      for (pid_t started : children) waitpid(started, nullptr, 0);
      return 1;
    }
    children.push_back(pid);
  }
  int running = count, code = 0;
  absl::Time limit = absl::InfiniteFuture();
  while (running > 0) {
    if (const int signal = pass_on.exchange(0); signal != 0) tell(signal);
    int status = 0;
    bool any = false;
    for (int r = 0; r < count; ++r) {
      if (children[r] <= 0 || waitpid(children[r], &status, WNOHANG) != children[r]) continue;
      any = true;
      --running;
      children[r] = 0;
      const bool died = WIFSIGNALED(status);
      if (died) {
        const int signal = WTERMSIG(status);
        if (absl::Now() < limit)
          errors << "rank " << r << " was ended by signal " << signal << " (" << strsignal(signal) << ")"
                 << std::endl;
      }
      const int its_code = died ? 1 : WEXITSTATUS(status);
      if (its_code == 0) continue;
      if (code == 0) code = its_code;
      limit = std::min(limit, absl::Now() + (died ? options.grace_after_death : options.grace_after_error));
    }
    if (running > 0 && absl::Now() >= limit) {
      for (int r = 0; r < count; ++r) {
        if (children[r] > 0)
          errors << "rank " << r << " (process " << children[r] << ") does not end by itself and is killed"
                 << std::endl;
      }
      tell(SIGKILL);
      limit = absl::InfiniteFuture();
      for (pid_t& pid : children) {
        if (pid > 0) waitpid(pid, nullptr, 0);
        pid = 0;
      }
      running = 0;
    }
    if (!any) absl::SleepFor(absl::Milliseconds(20));
  }
  return code;
}

}  // namespace moe::comm
