// ComputeGate: lets at most so many threads compute at once, and says which of those that can go on does.
//
// A virtual device has threads of its own, and there are more virtual devices than cores. A thread holds a
// token of the gate while it computes and gives it up while it waits for others, so that the cores are busy
// and never oversubscribed.
//
//   ComputeGate gate(2);
//   // in every thread:
//   ComputeGate::Scope computing(&gate);
//   ... compute ...
//   absl::MutexLock lock(&mutex);
//   while (!arrived) changed.Wait(&mutex);   // a ComputeGate::Condition: others compute meanwhile
//
// The token belongs to the thread: code that blocks need not know the gate, only that a thread may hold one.
//
// A notified thread is not woken before a token is free for it, so no thread wakes up only to wait for the
// gate. If a gate has a token for each core that the process may use, each token stands for a core: a
// thread runs on the core of its token. Left to itself, the scheduler of the system often puts two of many
// threads that wake each other up on one core and leaves the other idle for milliseconds. A free core takes
// first those that ran on it last, then whoever has waited longest.
//
// The gate outlives its users. Thread-safe.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace moe::comm {

class ComputeGate {
 public:
  explicit ComputeGate(int tokens);  // at least 1
  ComputeGate(const ComputeGate&) = delete;
  ComputeGate& operator=(const ComputeGate&) = delete;

  void Enter();  // waits for a token; the thread must not hold one, of any gate
  void Leave();  // gives this thread's token back

  // Would another thread of this thread's gate find a token at once? True for a thread without a gate. A
  // hint: it may change any time.
  static bool HasIdleTokens();

  // Holds a token for a scope. Null: does nothing.
  class Scope {
   public:
    explicit Scope(ComputeGate* gate) : gate_(gate) {
      if (gate_ != nullptr) gate_->Enter();
    }
    ~Scope() {
      if (gate_ != nullptr) gate_->Leave();
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    ComputeGate* const gate_;
  };

  // Gives up the token that this thread holds, if any, until the end of the scope: around anything that
  // blocks and is not a Condition. Take no lock that others need before the end, since getting the token back
  // may take long.
  class Released {
   public:
    Released();
    ~Released();
    Released(const Released&) = delete;
    Released& operator=(const Released&) = delete;

   private:
    ComputeGate* const gate_;
  };

 private:
  struct Thread;

 public:
  // A condition variable for threads with tokens and without. Waiting gives up the mutex and the token; on
  // return the thread has both again. Wakes up only when notified.
  class Condition {
   public:
    Condition() = default;
    Condition(const Condition&) = delete;
    Condition& operator=(const Condition&) = delete;

    void Wait(absl::Mutex* mutex) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
    void NotifyAll();  // the caller holds the mutex of those who wait

   private:
    Thread* waiting_ = nullptr;  // in order of arrival; guarded by that mutex
  };

 private:
  static Thread& Self();
  bool TakeIdle(Thread& t) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Queue(Thread& t) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The thread that gets a token which has become free; null: none waits, and the token is idle.
  Thread* PassOn(int token) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void GiveBack(Thread& t) ABSL_LOCKS_EXCLUDED(mutex_);
  void GetBack(Thread& t) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits without token until it is made ready, and has one.
  void Park(Thread& t) ABSL_LOCKS_EXCLUDED(mutex_);
  void MakeReady(Thread& t) ABSL_LOCKS_EXCLUDED(mutex_);
  void WakeUp(Thread& t);  // that was granted a token
  void Pin(Thread& t);     // to the core of its token
  void Unpin(Thread& t);

  std::vector<int> cores_;  // per token; empty: threads run where they like
  cpu_set_t all_cores_;
  absl::Mutex mutex_;
  std::vector<int> idle_ ABSL_GUARDED_BY(mutex_);  // tokens
  std::atomic<int> num_idle_;
  Thread* first_ready_ ABSL_GUARDED_BY(mutex_) = nullptr;  // queue of the threads that wait for a token
  Thread* last_ready_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace moe::comm
