#include "moe/runtime/comm_queue.h"

namespace moe {

CommQueue::CommQueue(std::function<absl::Status(Job)> run, ComputeGate* gate, size_t capacity)
    : run_(std::move(run)), gate_(gate) {
  items_.reserve(capacity);
  thread_ = std::thread([this] { Loop(); });
}

CommQueue::~CommQueue() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void CommQueue::BeginFunction() {
  std::lock_guard<std::mutex> lock(mutex_);
  items_.clear();
  next_ = 0;
  posted_ = done_ = compute_done_ = 0;
}

void CommQueue::Post(Job job, int64_t after_compute) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    items_.push_back({job, after_compute});
    ++posted_;
  }
  changed_.notify_all();
}

void CommQueue::ComputeDone() {
  bool wake;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++compute_done_;
    wake = next_ < items_.size() && items_[next_].after_compute == compute_done_;
  }
  if (wake) changed_.notify_all();
}

bool CommQueue::Idle() {
  std::lock_guard<std::mutex> lock(mutex_);
  return done_ == posted_;
}

void CommQueue::CountInline() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++posted_;
  ++done_;
}

absl::Status CommQueue::WaitFor(int64_t jobs) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (done_ < jobs && status_.ok()) {
    lock.unlock();
    ComputeGate::Released released;
    lock.lock();
    changed_.wait(lock, [&] { return done_ >= jobs || !status_.ok(); });
    lock.unlock();  // before the gate is taken again
  }
  return status_;  // written once, before done_ or the wake-up that let us through
}

absl::Status CommQueue::WaitForAll() {
  int64_t jobs;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs = posted_;
  }
  return WaitFor(jobs);
}

void CommQueue::Loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] {
      return stop_ || (status_.ok() && next_ < items_.size() && items_[next_].after_compute <= compute_done_);
    });
    if (stop_) return;
    const Item item = items_[next_++];
    lock.unlock();
    absl::Status status;
    {
      ComputeGate::Scope computing(gate_);
      status = run_(item.job);
    }
    lock.lock();
    ++done_;
    if (!status.ok() && status_.ok()) status_ = status;
    changed_.notify_all();
  }
}

}  // namespace moe
