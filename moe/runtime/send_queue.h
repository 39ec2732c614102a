// SendQueue: one thread that sends the slots of one boundary value to a peer, in order. A sender goes on
// computing; before it writes a slot again, it waits until the transfer of the slot is done.
//
//   RETURN_IF_ERROR(queue->Post(slot, data, bytes, tag, writer));
//   RETURN_IF_ERROR(queue->WaitFor(slot, writer));
//
// Transfers are work of a stream of the queue's own; `writer` is the stream that writes the slots, and gets
// to know by events. Post and WaitFor are called by one thread (the compute queue of the rank). Owns its
// thread, not the buffers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "moe/comm/communicator.h"
#include "moe/comm/compute_gate.h"
#include "moe/device/device.h"

namespace moe::runtime {

class SendQueue {
 public:
  // peer: group rank of the receiver in `comm`, a group of two, which works on `stream`.
  static absl::StatusOr<std::unique_ptr<SendQueue>> Create(comm::Communicator* comm, device::Stream* stream,
                                                           int peer, int slots, std::string what);
  ~SendQueue();  // waits for what was posted

  absl::Status Post(int slot, const void* data, int64_t bytes, int64_t tag, device::Stream* writer);
  // What `writer` is given from here on waits for the transfer. Error: that of a failed one.
  absl::Status WaitFor(int slot, device::Stream* writer);
  absl::Status WaitForAll(device::Stream* writer);

 private:
  struct Item {
    int slot;
    const void* data;
    int64_t bytes, tag;
  };
  SendQueue(comm::Communicator* comm, device::Stream* stream, int peer, int slots, std::string what);
  absl::Status Send(const Item& item);
  void Loop() ABSL_LOCKS_EXCLUDED(mutex_);

  comm::Communicator* const comm_;
  device::Stream* const stream_;
  const int peer_;
  const std::string what_;
  absl::Mutex mutex_;
  comm::ComputeGate::Condition changed_;
  std::vector<Item> ring_;  // at most one item per slot
  size_t head_ = 0, size_ = 0;
  std::vector<bool> pending_;
  std::vector<bool> awaited_;  // the writer waits for the last transfer already; the writer's
  std::vector<std::unique_ptr<device::Event>> written_, sent_;  // per slot
  absl::Status status_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace moe::runtime
