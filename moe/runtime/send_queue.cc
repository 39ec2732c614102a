#include "moe/runtime/send_queue.h"

#include <glog/logging.h>

#include <algorithm>

namespace moe {

SendQueue::SendQueue(Communicator* comm, int peer, int slots, std::string what)
    : comm_(comm), peer_(peer), what_(std::move(what)), ring_(slots), pending_(slots, false) {
  thread_ = std::thread([this] { Loop(); });
}

SendQueue::~SendQueue() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void SendQueue::Post(int slot, const void* data, int64_t bytes, int64_t tag) {
  absl::MutexLock lock(&mutex_);
  CHECK(!pending_[slot]) << what_ << ": slot " << slot << " is still being sent";
  pending_[slot] = true;
  ring_[(head_ + size_) % ring_.size()] = {slot, data, bytes, tag};
  ++size_;
  changed_.NotifyAll();
}

absl::Status SendQueue::WaitFor(int slot) {
  absl::MutexLock lock(&mutex_);
  while (pending_[slot]) changed_.Wait(&mutex_);
  return status_;
}

absl::Status SendQueue::WaitForAll() {
  for (size_t slot = 0; slot < pending_.size(); ++slot) {
    absl::Status status = WaitFor(static_cast<int>(slot));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

void SendQueue::Loop() {
  absl::MutexLock lock(&mutex_);
  for (;;) {
    while (!stop_ && size_ == 0) changed_.Wait(&mutex_);
    if (size_ == 0) return;
    const Item item = ring_[head_];
    head_ = (head_ + 1) % ring_.size();
    --size_;
    mutex_.Unlock();
    absl::Status status = comm_->Send(item.data, item.bytes, peer_, item.tag, what_);
    mutex_.Lock();
    if (status_.ok()) status_ = status;
    pending_[item.slot] = false;
    changed_.NotifyAll();
  }
}

}  // namespace moe
