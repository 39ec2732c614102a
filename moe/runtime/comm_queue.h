// CommQueue: the thread that runs a rank's collectives beside its compute queue.
//
// Both queues run their nodes in list order. Nodes are counted from 1 within a function, per queue; a node
// runs once the other queue has done what it must wait for (FunctionMemory::waits: data and reuse of memory).
// If the compute thread needs the result of a collective at once while this queue is idle, it runs the
// collective itself: the order is the same, and no thread has to be woken.
//
//   const int64_t before = queue.BeginFunction();
//   const int64_t job = queue.Post(&node, /*after_compute=*/3);   // before + 1; compute thread
//   queue.ComputeDone();
//   RETURN_IF_ERROR(queue.WaitFor(job));
//
// Jobs may outlast their function: a later function that needs one waits for its number. Numbers count on for
// as long as the queue lives.
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

namespace moe::runtime {

class CommQueue {
 public:
  using Job = void*;
  // run(job) is called on the queue's thread, which holds a token of `gate` (may be null) meanwhile.
  // `capacity`: the most jobs at one time, those of one function and what earlier ones leave behind.
  CommQueue(std::function<absl::Status(Job)> run, comm::ComputeGate* gate, size_t capacity);
  ~CommQueue();

  // From here on compute nodes count from 1 again. Gives the number of the last job so far.
  int64_t BeginFunction();
  // The job may start when that many compute nodes are done; null: does nothing in its turn. Gives its
  // number.
  int64_t Post(Job job, int64_t after_compute);
  void ComputeDone();     // one more
  bool Idle();            // all that was posted is done
  int64_t CountInline();  // the compute thread ran the next job itself
  // Until the job of that number is done, and all before it; the first error of any.
  absl::Status WaitFor(int64_t job);

 private:
  struct Item {
    Job job;
    int64_t after_compute;
  };
  void Loop() ABSL_LOCKS_EXCLUDED(mutex_);

  const std::function<absl::Status(Job)> run_;
  comm::ComputeGate* const gate_;
  absl::Mutex mutex_;
  comm::ComputeGate::Condition changed_;
  std::vector<Item> ring_;                            // job n is at n % size
  int64_t posted_ = 0, done_ = 0, compute_done_ = 0;  // ever
  int64_t first_compute_ = 0;                         // before the function
  absl::Status status_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace moe::runtime
