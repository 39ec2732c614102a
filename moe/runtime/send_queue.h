// SendQueue: one thread that sends the slots of one boundary value to a peer, in order. A sender goes on
// computing; whoever wants to write a slot again waits until its transfer is done.
//
//   queue.Post(slot, data, bytes, tag);
//   RETURN_IF_ERROR(queue.WaitFor(slot));
//
// Post and WaitFor are called by one thread (the compute queue of the rank). Owns its thread, not the
// buffers.
#pragma once

#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "moe/comm/communicator.h"
#include "moe/comm/compute_gate.h"

namespace moe {

class SendQueue {
 public:
  // peer: group rank of the receiver in `comm`, a group of two.
  SendQueue(Communicator* comm, int peer, int slots, std::string what);
  ~SendQueue();  // waits for what was posted

  void Post(int slot, const void* data, int64_t bytes, int64_t tag);
  absl::Status WaitFor(int slot);  // error: that of a failed transfer
  absl::Status WaitForAll();

 private:
  struct Item {
    int slot;
    const void* data;
    int64_t bytes, tag;
  };
  void Loop() ABSL_LOCKS_EXCLUDED(mutex_);

  Communicator* const comm_;
  const int peer_;
  const std::string what_;
  absl::Mutex mutex_;
  ComputeGate::Condition changed_;
  std::vector<Item> ring_;  // at most one item per slot
  size_t head_ = 0, size_ = 0;
  std::vector<bool> pending_;
  absl::Status status_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace moe
