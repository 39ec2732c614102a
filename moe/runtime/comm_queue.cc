#include "moe/runtime/comm_queue.h"

#include <glog/logging.h>

#include <algorithm>

namespace moe::runtime {

CommQueue::CommQueue(std::function<absl::Status(Job)> run, comm::ComputeGate* gate, size_t capacity)
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

int64_t CommQueue::BeginFunction() {
  absl::MutexLock lock(&mutex_);
  first_compute_ = compute_done_;
  return posted_;
}

int64_t CommQueue::Post(Job job, int64_t after_compute) {
  absl::MutexLock lock(&mutex_);
  CHECK_LT(posted_ - done_, static_cast<int64_t>(ring_.size())) << "more collectives than planned wait";
  ring_[posted_ % static_cast<int64_t>(ring_.size())] = {job, first_compute_ + after_compute};
  changed_.NotifyAll();
  return ++posted_;
}

void CommQueue::ComputeDone() {
  absl::MutexLock lock(&mutex_);
  ++compute_done_;
  if (done_ < posted_ && ring_[done_ % static_cast<int64_t>(ring_.size())].after_compute == compute_done_) {
    changed_.NotifyAll();
  }
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

absl::Status CommQueue::WaitFor(int64_t job) {
  absl::MutexLock lock(&mutex_);
  while (done_ < job && status_.ok()) changed_.Wait(&mutex_);
  return status_;
}

void CommQueue::Loop() {
  comm::ComputeGate::Scope computing(gate_);
  absl::MutexLock lock(&mutex_);
  for (;;) {
    const auto next = [&]() -> const Item& { return ring_[done_ % static_cast<int64_t>(ring_.size())]; };
    while (!stop_ && !(status_.ok() && done_ < posted_ && next().after_compute <= compute_done_)) {
      changed_.Wait(&mutex_);
    }
    if (stop_) return;
    const Item item = next();
    mutex_.Unlock();
    absl::Status status;
    if (item.job != nullptr) status = run_(item.job);
    mutex_.Lock();
    ++done_;
    if (!status.ok() && status_.ok()) status_ = status;
    changed_.NotifyAll();
  }
}

}  // namespace moe::runtime
