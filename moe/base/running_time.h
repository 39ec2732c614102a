// The clock of deadlines: how long this process has run. A suspended machine, a process that was stopped
// (Ctrl-Z, a debugger, a frozen container) and a clock that is set do not move it, so a pause is never taken
// for a peer that does not come.
//
//   const absl::Duration deadline = RunningTime() + timeout;
//   while (!Arrived() && RunningTime() < deadline) absl::SleepFor(absl::Milliseconds(10));
//
//   Alarm alarm(deadline, [&] { absl::MutexLock lock(&mutex); late = true; changed.SignalAll(); });
//   absl::MutexLock lock(&mutex);
//   while (!done && !late) changed.Wait(&mutex);
//
// A thread of the process counts ticks of 50 ms, and a tick that came late for at most two. So the clock is
// behind that of the wall where a process gets no core, and exact to a tick otherwise. Thread-safe; nothing
// allocates after the first call.
#pragma once

#include <utility>

#include "absl/time/time.h"

namespace moe {

// Since the first call in this process.
absl::Duration RunningTime();

// How long this process was stopped or the machine suspended, of the time since the first call.
absl::Duration PausedTime();

class AlarmEntry {
 public:
  AlarmEntry(const AlarmEntry&) = delete;
  AlarmEntry& operator=(const AlarmEntry&) = delete;

 protected:
  explicit AlarmEntry(absl::Duration at) : at_(at) {}
  ~AlarmEntry() = default;
  void Set();
  void Cancel();  // afterwards it does not ring, and is not ringing

 private:
  friend class RunningClock;
  virtual void Ring() = 0;
  const absl::Duration at_;
  AlarmEntry *previous_ = nullptr, *next_ = nullptr;
  bool set_ = false;
};

// Calls `ring` once, on the clock's thread, when RunningTime() has come to `at`, unless it is destroyed
// before. `ring` must be short. Whatever lock it takes must not be held where the alarm is made or destroyed.
template <typename F>
class Alarm final : private AlarmEntry {
 public:
  Alarm(absl::Duration at, F ring) : AlarmEntry(at), ring_(std::move(ring)) { Set(); }
  ~Alarm() { Cancel(); }

 private:
  void Ring() override { ring_(); }
  F ring_;
};

}  // namespace moe
