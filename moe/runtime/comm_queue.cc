#include "moe/runtime/comm_queue.h"

#include <algorithm>

namespace moe {

CommQueue::CommQueue(std::function<absl::Status(Job)> run, ComputeGate* gate, size_t capacity)
    : run_(std::move(run)), gate_(gate), ring_(std::max<size_t>(1, capacity)) {
  thread_ = std::thread([this] { Loop(); });
}

CommQueue::~CommQueue() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void CommQueue::BeginFunction() {
  absl::MutexLock lock(&mutex_);
  first_job_ = posted_;
  first_compute_ = compute_done_;
}

int64_t CommQueue::Post(Job job, int64_t after_compute) {
  absl::MutexLock lock(&mutex_);
  ring_[posted_ % static_cast<int64_t>(ring_.size())] = {job, first_compute_ + after_compute};
  ++posted_;
  changed_.NotifyAll();
  return posted_;
}

void CommQueue::ComputeDone() {
  absl::MutexLock lock(&mutex_);
  ++compute_done_;
  if (done_ < posted_ && Next().after_compute == compute_done_) changed_.NotifyAll();
}

bool CommQueue::Idle() {
  absl::MutexLock lock(&mutex_);
  return done_ == posted_;
}

int64_t CommQueue::CountInline() {
  absl::MutexLock lock(&mutex_);
  ++done_;
  return ++posted_;
}

absl::Status CommQueue::WaitFor(int64_t jobs) { return WaitForJob(first_job_ + jobs); }

absl::Status CommQueue::WaitForJob(int64_t job) {
  absl::MutexLock lock(&mutex_);
  while (done_ < job && status_.ok()) changed_.Wait(&mutex_);
  return status_;
}

void CommQueue::Loop() {
  ComputeGate::Scope computing(gate_);
  absl::MutexLock lock(&mutex_);
  for (;;) {
    while (!stop_ && !(status_.ok() && done_ < posted_ && Next().after_compute <= compute_done_)) {
      changed_.Wait(&mutex_);
    }
    if (stop_) return;
    const Item item = Next();
    mutex_.Unlock();
    const absl::Status status = item.job == nullptr ? absl::OkStatus() : run_(item.job);
    mutex_.Lock();
    ++done_;
    if (!status.ok() && status_.ok()) status_ = status;
    changed_.NotifyAll();
  }
}

}  // namespace moe
