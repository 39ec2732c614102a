// Records two steps after the warm-up of the caches, on all ranks of all processes, for trace.json.
//
//   StepTracer tracer(executors, /*done=*/0, train_iters);
//   tracer.Before(step);
//   ...  // the step
//   tracer.After(step);
//   if (tracer.trace().ok()) std::cout << tracer.trace()->num_events();
//
// The executors outlive the tracer. One thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/runtime/executor.h"
#include "moe/runtime/trace.h"

namespace moe::train {

class StepTracer {
 public:
  // Of several plans, whichever run the steps to be recorded.
  StepTracer(std::vector<runtime::Executor*> executors, int64_t done, int64_t steps)
      : executors_(std::move(executors)),
        first_(done + 1 + std::min<int64_t>(10, std::max<int64_t>(0, steps - done - kTracedSteps))) {}

  void Before(int64_t step) {
    if (step != first_) return;
    for (runtime::Executor* e : executors_) started_.Update(e->StartTrace(kTracedSteps));
  }

  void After(int64_t step) {
    if (step < first_ || done_) return;
    if (step + 1 < first_ + kTracedSteps) return;
    done_ = true;
    for (runtime::Executor* e : executors_) {
      e->StopTrace();
      absl::StatusOr<runtime::Trace> trace = e->GatherTrace();
      if (!trace.ok()) {
        trace_ = std::move(trace);
        return;
      }
      if (trace->num_events() > trace_->num_events()) trace_ = std::move(trace);
    }
    if (!started_.ok()) trace_ = started_;  // the others wanted the gathering all the same
  }

  // Of the plan with most events; without any before the steps were run. Whole on process 0.
  const absl::StatusOr<runtime::Trace>& trace() const { return trace_; }

 private:
  static constexpr int64_t kTracedSteps = 2;
  const std::vector<runtime::Executor*> executors_;
  const int64_t first_;
  bool done_ = false;
  absl::Status started_;
  absl::StatusOr<runtime::Trace> trace_ = runtime::Trace();
};

}  // namespace moe::train
