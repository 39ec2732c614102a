// Pulse: a sign of life that each process of a job gives through the store, by which one that is paused is
// told from one that hangs, and by its connections from one that is dead.
//
//   Pulse pulse(store, /*process=*/2, /*processes=*/4);
//   PeerDeadline deadline(timeout, &pulse);
//   while (!Arrived()) {
//     if (RunningTime() >= deadline.at() && !deadline.Extend()) return DeadlineExceeded;
//   }
//
// A process that is stopped, frozen with its container or suspended with its machine gives none, nor does one
// whose host is cut off; it is waited for four times as long as one that runs. The store outlives the pulse.
// Owns a thread. Thread-safe; a PeerDeadline belongs to one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "moe/comm/store/store.h"

namespace moe::comm {

class Pulse {
 public:
  Pulse(Store* store, int64_t process, int64_t processes);
  ~Pulse();
  Pulse(const Pulse&) = delete;
  Pulse& operator=(const Pulse&) = delete;

  // How to find out that a process is dead. Whatever it uses outlives the pulse, or the next call of this.
  void SetDeathCheck(std::function<bool()> somebody_is_dead);
  // Whether a process has been paused since this was last asked, or is. Takes a few seconds. No answer of the
  // store, or one that is dead: false, there is nobody to wait for.
  bool SomebodyPauses();

 private:
  struct Beat {
    int64_t number = 0, paused_ms = 0;  // 0: it has not begun
  };
  void Give();
  absl::StatusOr<std::vector<Beat>> Read();

  Store* const store_;
  const int64_t process_, processes_;
  absl::Mutex asking_;
  std::function<bool()> somebody_is_dead_ ABSL_GUARDED_BY(asking_);
  int64_t paused_ms_ ABSL_GUARDED_BY(asking_) = 0;  // of all, as last seen
  absl::Duration asked_ ABSL_GUARDED_BY(asking_) = -absl::InfiniteDuration();
  bool answer_ ABSL_GUARDED_BY(asking_) = false;
  Cancellation stop_;
  std::thread giver_;
};

// Until when a wait for peers lasts, on the clock of RunningTime().
class PeerDeadline {
 public:
  // Null: pauses of others are not looked for.
  PeerDeadline(absl::Duration timeout, Pulse* pulse);
  absl::Duration at() const { return at_; }
  absl::Duration limit() const { return timeout_ * (1 + times_); }  // of the wait so far, for messages
  // Whether to wait on after at(), which is later then. Takes as long as SomebodyPauses.
  bool Extend();

 private:
  absl::Duration timeout_, at_;
  Pulse* pulse_;
  int times_ = 0;
};

}  // namespace moe::comm
