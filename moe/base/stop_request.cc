#include "moe/base/stop_request.h"

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/clock.h"
#include "moe/base/exit_code.h"

namespace moe {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP, SIGXCPU, SIGUSR1, SIGUSR2};
constexpr int64_t kOneRequestNanos = 500'000'000;
// The processes of a job are told one after the other: none shall be missed by its peers before they know.
constexpr timespec kUntilAllKnow = {0, 200'000'000};

// All that a handler does: notes what came, and wakes the thread that deals with it.
sem_t came;
std::atomic<int> first_signal{0};
std::atomic<int64_t> first_at{0};
std::atomic<bool> again{false};

}  // namespace

StopRequest& StopRequest::Listen() {
  static StopRequest* const request = new StopRequest;
  return *request;
}

void StopRequest::OnSignal(int signal) {
  const int error = errno;
  const int64_t now = NowNanos();
  int64_t never = 0;
  if (first_at.compare_exchange_strong(never, now)) {
    first_signal = signal;
  } else if (signal == SIGINT && now - first_at >= kOneRequestNanos) {
    again = true;
  }
  sem_post(&came);
  errno = error;
}

StopRequest::StopRequest() {
  sem_init(&came, 0, 0);
  signal(SIGPIPE, SIG_IGN);
  std::thread([this] { Watch(); }).detach();
  for (const int s : kSignals) {
    struct sigaction act {};
    if (s == SIGHUP && sigaction(s, nullptr, &act) == 0 && act.sa_handler == SIG_IGN) continue;
    act.sa_handler = OnSignal;
    act.sa_flags = SA_RESTART;
    sigfillset(&act.sa_mask);
    sigaction(s, &act, nullptr);
  }
}

void StopRequest::Watch() {
  for (;;) {
    while (sem_wait(&came) != 0) continue;  // EINTR
    std::lock_guard<std::mutex> lock(mutex_);
    if (by_.empty()) by_ = absl::StrCat("SIG", sigabbrev_np(first_signal));
    asked_ = true;
    if (again) insists_ = true;
    if (mode_ == kAtOnce) Leave(kExitStopped);
    if (mode_ == kInOrder && insists_) Leave(kExitAtOnce);
  }
}

void StopRequest::Ask(absl::string_view by) {
  int64_t never = 0;
  if (!first_at.compare_exchange_strong(never, NowNanos())) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    by_ = std::string(by);
    asked_ = true;
  }
  sem_post(&came);
}

std::string StopRequest::by() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return by_;
}

void StopRequest::Enter(Mode mode, std::string say) {
  std::lock_guard<std::mutex> lock(mutex_);
  mode_ = mode;
  say_ = std::move(say);
  if (mode_ == kAtOnce && asked_) Leave(kExitStopped);
}

void StopRequest::EndsAtOnce(std::string say) { Enter(kAtOnce, std::move(say)); }
void StopRequest::EndsInOrder(std::string say) { Enter(kInOrder, std::move(say)); }
void StopRequest::EndsByCaller() { Enter(kByCaller, ""); }

void StopRequest::Silence() {
  std::lock_guard<std::mutex> lock(mutex_);
  silent_ = true;
}

void StopRequest::Leave(int code) const {
  if (!silent_ && !say_.empty()) {
    const std::string line = absl::StrCat("stopped by ", by_, " ", say_, "\n");
    if (write(STDERR_FILENO, line.data(), line.size()) < 0) {
      // Nobody is there to read it.
    }
  }
  if (code == kExitStopped) nanosleep(&kUntilAllKnow, nullptr);
  _exit(code);
}

}  // namespace moe
