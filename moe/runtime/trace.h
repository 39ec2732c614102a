// Trace of a run: what each rank did when, and its summary by category.
//
// Events go to a buffer that is reserved when tracing starts; nothing is allocated while steps run, and
// events beyond the reservation are dropped and counted. One recorder per thread that runs nodes;
// WriteChromeTrace joins them.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "moe/ir/graph.h"

namespace moe {

enum class Category : uint8_t { kGemm, kAttention, kRouting, kCollective, kOptimizer, kOther };
constexpr int kNumCategories = 6;
absl::string_view CategoryName(Category c);
Category CategoryOf(const Node& n);

int64_t NowNanos();        // monotonic
int64_t ThreadCpuNanos();  // CPU time of the calling thread

struct TraceEvent {
  const char* name;           // owned by the plan: op or action
  const std::string* detail;  // result name, may be null
  int64_t begin_ns, end_ns;
  int32_t microbatch;
  int32_t lane;  // 0 compute, 1 communication, 2 pipeline actions
  Category category;
  int64_t bytes;       // collectives: bytes this rank sends
  int64_t cpu_ns = 0;  // of a node: CPU time of its thread, which leaves out waiting
};

class TraceRecorder {
 public:
  void Reserve(int64_t events) { events_.reserve(events); }
  void Clear() {
    events_.clear();
    dropped_ = 0;
  }
  void Add(const TraceEvent& e) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (events_.size() < events_.capacity()) {
      events_.push_back(e);
    } else {
      ++dropped_;
    }
  }
  const std::vector<TraceEvent>& events() const { return events_; }
  int64_t dropped() const { return dropped_; }

 private:
  std::mutex mutex_;
  std::vector<TraceEvent> events_;
  int64_t dropped_ = 0;
};

// Time that ranks spent in exchanges, waiting for peers included, and the part of it in which their compute
// queue worked on something else: communication that is hidden.
struct CommunicationTime {
  double seconds = 0, hidden_seconds = 0;  // of all ranks together
  double hidden() const { return seconds > 0 ? hidden_seconds / seconds : 0; }
};
CommunicationTime CommunicationOf(const std::vector<const TraceRecorder*>& recorders);

// Chrome trace format (opens in Perfetto): pid = rank, tid = lane; ts and dur in microseconds.
// recorders[rank].
std::string ChromeTrace(const std::vector<const TraceRecorder*>& recorders);

}  // namespace moe
