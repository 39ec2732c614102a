#include "moe/base/running_time.h"

#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

namespace moe {
namespace {

constexpr int64_t kTickNanos = 50'000'000;

// With the time in which the machine was suspended.
int64_t Elapsed() {
  timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

}  // namespace

class RunningClock {
 public:
  // One for each process: a child of fork has no thread of its parent's.
  static RunningClock& Get() {
    static std::atomic<RunningClock*> clock{nullptr};
    if (RunningClock* c = clock.load(std::memory_order_acquire)) return *c;
    static std::mutex making;
    std::lock_guard<std::mutex> lock(making);
    if (clock.load() == nullptr) {
      static const int registered = pthread_atfork(nullptr, nullptr, [] { clock = nullptr; });
      (void)registered;
      auto* c = new RunningClock;  // lives as long as its thread
      std::thread([c, now = Elapsed()] { c->Tick(now); }).detach();
      clock.store(c, std::memory_order_release);
    }
    return *clock;
  }

  int64_t nanos() const { return nanos_.load(std::memory_order_acquire); }
  int64_t paused() const { return paused_.load(std::memory_order_acquire); }

  void Add(AlarmEntry* a) {
    std::lock_guard<std::mutex> lock(mutex_);
    a->next_ = first_;
    if (first_ != nullptr) first_->previous_ = a;
    first_ = a;
    a->set_ = true;
  }
  void Remove(AlarmEntry* a) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (a->set_) Unlink(a);
  }

 private:
  void Unlink(AlarmEntry* a) {
    (a->previous_ != nullptr ? a->previous_->next_ : first_) = a->next_;
    if (a->next_ != nullptr) a->next_->previous_ = a->previous_;
    a->set_ = false;
  }
  // From `before` on, so that a pause before the thread begins is one, too.
  void Tick(int64_t before) {
    for (;;) {
      std::this_thread::sleep_for(std::chrono::nanoseconds(kTickNanos));
      const int64_t now = Elapsed(), passed = now - before, counted = std::min(passed, 2 * kTickNanos);
      before = now;
      paused_.store(paused() + passed - counted, std::memory_order_release);
      nanos_.store(nanos() + counted, std::memory_order_release);
      const absl::Duration time = absl::Nanoseconds(nanos());
      std::lock_guard<std::mutex> lock(mutex_);
      for (AlarmEntry* a = first_; a != nullptr;) {
        AlarmEntry* const next = a->next_;
        if (a->at_ <= time) {
          Unlink(a);
          a->Ring();
        }
        a = next;
      }
    }
  }

  std::atomic<int64_t> nanos_{0}, paused_{0};
  std::mutex mutex_;
  AlarmEntry* first_ = nullptr;
};

absl::Duration RunningTime() { return absl::Nanoseconds(RunningClock::Get().nanos()); }

absl::Duration PausedTime() { return absl::Nanoseconds(RunningClock::Get().paused()); }

void AlarmEntry::Set() { RunningClock::Get().Add(this); }
void AlarmEntry::Cancel() { RunningClock::Get().Remove(this); }

}  // namespace moe
