#include "moe/runtime/send_queue.h"

#include <glog/logging.h>

#include <algorithm>

#include "moe/comm/compute_gate.h"

namespace moe {

SendQueue::SendQueue(Communicator* comm, int peer, int slots, std::string what)
    : comm_(comm), peer_(peer), what_(std::move(what)), ring_(slots), pending_(slots, false) {
  thread_ = std::thread([this] { Loop(); });
}

SendQueue::~SendQueue() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void SendQueue::Post(int slot, const void* data, int64_t bytes, int64_t tag) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    CHECK(!pending_[slot]) << what_ << ": slot " << slot << " is still being sent";
    pending_[slot] = true;
    ring_[(head_ + size_) % ring_.size()] = {slot, data, bytes, tag};
    ++size_;
  }
  changed_.notify_all();
}

absl::Status SendQueue::WaitFor(int slot) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!pending_[slot]) return status_;
  lock.unlock();
  ComputeGate::Released released;
  lock.lock();
  changed_.wait(lock, [&] { return !pending_[slot]; });
  absl::Status status = status_;
  lock.unlock();  // before the gate is taken again
  return status;
}

absl::Status SendQueue::WaitForAll() {
  for (size_t slot = 0; slot < pending_.size(); ++slot) {
    absl::Status status = WaitFor(static_cast<int>(slot));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

void SendQueue::Loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || size_ > 0; });
    if (size_ == 0) return;
    const Item item = ring_[head_];
    head_ = (head_ + 1) % ring_.size();
    --size_;
    lock.unlock();
    absl::Status status = comm_->Send(item.data, item.bytes, peer_, item.tag, what_);
    lock.lock();
    if (status_.ok()) status_ = status;
    pending_[item.slot] = false;
    changed_.notify_all();
  }
}

}  // namespace moe
