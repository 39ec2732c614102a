#include "moe/runtime/comm_queue.h"

#include <algorithm>

namespace moe {

CommQueue::CommQueue(std::function<absl::Status(Job)> run, ComputeGate* gate, size_t capacity)
    : run_(std::move(run)), gate_(gate), ring_(std::max<size_t>(1, capacity)) {
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
  first_job_ = posted_;
  first_compute_ = compute_done_;
}

int64_t CommQueue::Post(Job job, int64_t after_compute) {
  int64_t number;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ring_[posted_ % static_cast<int64_t>(ring_.size())] = {job, first_compute_ + after_compute};
    number = ++posted_;
  }
  changed_.notify_all();
  return number;
}

void CommQueue::ComputeDone() {
  bool wake;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++compute_done_;
    wake =
        done_ < posted_ && ring_[done_ % static_cast<int64_t>(ring_.size())].after_compute == compute_done_;
  }
  if (wake) changed_.notify_all();
}

bool CommQueue::Idle() {
  std::lock_guard<std::mutex> lock(mutex_);
  return done_ == posted_;
}

int64_t CommQueue::CountInline() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++done_;
  return ++posted_;
}

absl::Status CommQueue::WaitFor(int64_t jobs) { return WaitForJob(first_job_ + jobs); }

absl::Status CommQueue::WaitForJob(int64_t job) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (done_ < job && status_.ok()) {
    lock.unlock();
    ComputeGate::Released released;
    lock.lock();
    changed_.wait(lock, [&] { return done_ >= job || !status_.ok(); });
    lock.unlock();  // before the gate is taken again
  }
  return status_;  // written once, before done_ or the wake-up that let us through
}

void CommQueue::Loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    const auto next = [&]() -> const Item& { return ring_[done_ % static_cast<int64_t>(ring_.size())]; };
    changed_.wait(lock, [&] {
      return stop_ || (status_.ok() && done_ < posted_ && next().after_compute <= compute_done_);
    });
    if (stop_) return;
    const Item item = next();
    lock.unlock();
    absl::Status status;
    if (item.job != nullptr) {
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
