#include "moe/runtime/send_queue.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>

#include "moe/base/status.h"

namespace moe::runtime {

absl::StatusOr<std::unique_ptr<SendQueue>> SendQueue::Create(comm::Communicator* comm, device::Stream* stream,
                                                             int peer, int slots, std::string what) {
  std::unique_ptr<SendQueue> q(new SendQueue(comm, stream, peer, slots, std::move(what)));
  for (int i = 0; i < slots; ++i) {
    ASSIGN_OR_RETURN(q->written_.emplace_back(), stream->device()->NewEvent());
    ASSIGN_OR_RETURN(q->sent_.emplace_back(), stream->device()->NewEvent());
  }
  SendQueue* const queue = q.get();
  q->thread_ = std::thread([queue] { queue->Loop(); });
  return q;
}

SendQueue::SendQueue(comm::Communicator* comm, device::Stream* stream, int peer, int slots, std::string what)
    : comm_(comm),
      stream_(stream),
      peer_(peer),
      what_(std::move(what)),
      ring_(slots),
      pending_(slots, false),
      awaited_(slots, true) {}

SendQueue::~SendQueue() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

absl::Status SendQueue::Post(int slot, const void* data, int64_t bytes, int64_t tag, device::Stream* writer) {
  RETURN_IF_ERROR(writer->Record(written_[slot].get()));
  awaited_[slot] = false;
  absl::MutexLock lock(&mutex_);
  CHECK(!pending_[slot]) << what_ << ": slot " << slot << " is still being sent";
  pending_[slot] = true;
  ring_[(head_ + size_) % ring_.size()] = {slot, data, bytes, tag};
  ++size_;
  changed_.NotifyAll();
  return absl::OkStatus();
}

absl::Status SendQueue::WaitFor(int slot, device::Stream* writer) {
  if (awaited_[slot]) return absl::OkStatus();
  {
    absl::MutexLock lock(&mutex_);
    while (pending_[slot]) changed_.Wait(&mutex_);
    if (!status_.ok()) return status_;
  }
  awaited_[slot] = true;
  return writer->Wait(sent_[slot].get());
}

absl::Status SendQueue::WaitForAll(device::Stream* writer) {
  for (size_t slot = 0; slot < pending_.size(); ++slot) {
    absl::Status status = WaitFor(static_cast<int>(slot), writer);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status SendQueue::Send(const Item& item) {
  RETURN_IF_ERROR(stream_->Wait(written_[item.slot].get()));
  stream_->Uses(what_, {});
  RETURN_IF_ERROR(comm_->Send(item.data, item.bytes, peer_, item.tag, what_));
  return stream_->Record(sent_[item.slot].get());
}

void SendQueue::Loop() {
  const absl::Status usable = stream_->device()->Use();
  absl::MutexLock lock(&mutex_);
  status_ = usable;
  for (;;) {
    while (!stop_ && size_ == 0) changed_.Wait(&mutex_);
    if (size_ == 0) return;
    const Item item = ring_[head_];
    head_ = (head_ + 1) % ring_.size();
    --size_;
    mutex_.Unlock();
    const absl::Status status = Send(item);
    mutex_.Lock();
    if (status_.ok()) status_ = status;
    pending_[item.slot] = false;
    changed_.NotifyAll();
  }
}

}  // namespace moe::runtime
