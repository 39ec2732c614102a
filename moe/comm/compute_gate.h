// ComputeGate: lets at most so many threads compute at once.
//
// A virtual device has threads of its own, and there are more virtual devices than cores. A thread holds a
// token of the gate while it computes and gives it up while it waits for others, so that the cores are busy
// and never oversubscribed.
//
//   ComputeGate gate(2);
//   void RankThread() {
//     ComputeGate::Scope computing(&gate);
//     Compute();
//     comm->AllReduce(...);             // blocks with ComputeGate::Released inside
//   }
//
// The token belongs to the thread: code that blocks need not know the gate, only that a thread may hold one.
// The gate outlives its users. Thread-safe.
#pragma once

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace moe {

class ComputeGate {
 public:
  explicit ComputeGate(int tokens);  // at least 1
  ComputeGate(const ComputeGate&) = delete;
  ComputeGate& operator=(const ComputeGate&) = delete;

  void Enter();  // waits for a token; the thread must not hold one, of any gate
  void Leave();  // gives this thread's token back

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

  // Gives up the token that this thread holds, if any, until the end of the scope. Around anything that
  // blocks; take no lock that others need before the end, since getting the token back may take long.
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
  absl::Mutex mutex_;
  absl::CondVar freed_;
  int tokens_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moe
