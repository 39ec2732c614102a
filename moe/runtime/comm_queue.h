// CommQueue: the thread that runs a rank's collectives beside its compute queue.
//
// Both queues run their nodes in list order. Nodes are counted from 1 within a function, per queue; a node
// runs once the other queue has done what it must wait for (FunctionMemory::waits: data and reuse of memory).
// A collective whose result is wanted at once, while this queue is idle, is run by the compute thread itself:
// the order is the same and nobody has to be woken.
//
//   queue.BeginFunction();
//   queue.Post(&node, /*after_compute=*/3);     // compute thread
//   queue.ComputeDone();
//   RETURN_IF_ERROR(queue.WaitFor(1));
//
// All but the thread's own work is called by the compute thread of the rank. Owns its thread; nothing is
// allocated after construction.
#pragma once

#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "moe/comm/compute_gate.h"

namespace moe {

class CommQueue {
 public:
  using Job = void*;
  // run(job) is called on the queue's thread, which holds a token of `gate` (may be null) meanwhile.
  // `capacity`: the most jobs of one function.
  CommQueue(std::function<absl::Status(Job)> run, ComputeGate* gate, size_t capacity);
  ~CommQueue();

  void BeginFunction();                       // the queue is idle
  void Post(Job job, int64_t after_compute);  // job may start when that many compute nodes are done
  void ComputeDone();                         // one more
  bool Idle();                                // all that was posted is done
  void CountInline();                         // the compute thread ran the next job itself
  absl::Status WaitFor(int64_t jobs);         // until that many jobs are done; the first error of any
  absl::Status WaitForAll();

 private:
  struct Item {
    Job job;
    int64_t after_compute;
  };
  void Loop() ABSL_LOCKS_EXCLUDED(mutex_);

  const std::function<absl::Status(Job)> run_;
  ComputeGate* const gate_;
  absl::Mutex mutex_;
  ComputeGate::Condition changed_;
  std::vector<Item> items_;
  size_t next_ = 0;  // of items_, to run
  int64_t posted_ = 0, done_ = 0, compute_done_ = 0;
  absl::Status status_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace moe
