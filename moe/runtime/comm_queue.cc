#include "moe/runtime/comm_queue.h"

namespace moe {

CommQueue::CommQueue(std::function<absl::Status(Job)> run, ComputeGate* gate, size_t capacity)
    : run_(std::move(run)), gate_(gate) {
  items_.reserve(capacity);
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
  items_.clear();
  next_ = 0;
  posted_ = done_ = compute_done_ = 0;
}

void CommQueue::Post(Job job, int64_t after_compute) {
  absl::MutexLock lock(&mutex_);
  items_.push_back({job, after_compute});
  ++posted_;
  changed_.NotifyAll();
}

void CommQueue::ComputeDone() {
  absl::MutexLock lock(&mutex_);
  ++compute_done_;
  if (next_ < items_.size() && items_[next_].after_compute == compute_done_) changed_.NotifyAll();
}

bool CommQueue::Idle() {
  absl::MutexLock lock(&mutex_);
  return done_ == posted_;
}

void CommQueue::CountInline() {
  absl::MutexLock lock(&mutex_);
  ++posted_;
  ++done_;
}

absl::Status CommQueue::WaitFor(int64_t jobs) {
  absl::MutexLock lock(&mutex_);
  while (done_ < jobs && status_.ok()) changed_.Wait(&mutex_);
  return status_;
}

absl::Status CommQueue::WaitForAll() {
  int64_t jobs;
  {
    absl::MutexLock lock(&mutex_);
    jobs = posted_;
  }
  return WaitFor(jobs);
}

void CommQueue::Loop() {
  ComputeGate::Scope computing(gate_);
  absl::MutexLock lock(&mutex_);
  for (;;) {
    while (!stop_ &&
           !(status_.ok() && next_ < items_.size() && items_[next_].after_compute <= compute_done_)) {
      changed_.Wait(&mutex_);
    }
    if (stop_) return;
    const Item item = items_[next_++];
    mutex_.Unlock();
    const absl::Status status = run_(item.job);
    mutex_.Lock();
    ++done_;
    if (!status.ok() && status_.ok()) status_ = status;
    changed_.NotifyAll();
  }
}

}  // namespace moe
