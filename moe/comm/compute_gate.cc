#include "moe/comm/compute_gate.h"

#include <glog/logging.h>

namespace moe {
namespace {

thread_local ComputeGate* held = nullptr;

}  // namespace

ComputeGate::ComputeGate(int tokens) : tokens_(tokens) { CHECK_GE(tokens, 1); }

void ComputeGate::Enter() {
  CHECK(held == nullptr) << "a thread holds one token at most";
  held = this;
  absl::MutexLock lock(&mutex_);
  while (tokens_ == 0) freed_.Wait(&mutex_);
  --tokens_;
}

void ComputeGate::Leave() {
  CHECK(held == this) << "leaves a gate that it has not entered";
  held = nullptr;
  absl::MutexLock lock(&mutex_);
  ++tokens_;
  freed_.Signal();
}

ComputeGate::Released::Released() : gate_(held) {
  if (gate_ != nullptr) gate_->Leave();
}

ComputeGate::Released::~Released() {
  if (gate_ != nullptr) gate_->Enter();
}

}  // namespace moe
