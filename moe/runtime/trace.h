// Trace of a run: what each rank did when, and its summary by category.
//
// An event lasts from one mark of a stream to another, by timed events of the device: a span shows when the
// stream did the work, not when it was given, and begins after whatever the stream waited for before it. Its
// times are read when the step is over, and are put onto the clock of NowNanos() by a reference that is taken
// before the step. On the host a stream does its work at once, and a mark is the time of the call. Events and
// marks are reserved when tracing starts; nothing is allocated while steps run, and events beyond the
// reservation are dropped and counted. A Trace has the events of all ranks, of whatever processes, on one
// clock.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/base/clock.h"
#include "moe/device/device.h"
#include "moe/device/stream_timer.h"
#include "moe/ir/graph.h"

namespace moe::runtime {

enum class Category : uint8_t { kGemm, kAttention, kRouting, kCollective, kOptimizer, kOther };
constexpr int kNumCategories = 6;
absl::string_view CategoryName(Category c);
Category CategoryOf(const Node& n);

int64_t ThreadCpuNanos();  // CPU time of the calling thread

struct TraceEvent {
  const char* name;           // owned by the plan, or by a Trace: op or action
  const std::string* detail;  // result name, or the boundary value of a send or receive; may be null
  int64_t begin_ns, end_ns;   // by NowNanos()
  int32_t microbatch;
  int32_t lane;  // 0 compute queue, 1 communication queue, 2 pipeline actions
  Category category;
  int64_t bytes;       // collectives and sends: bytes this rank sends
  int64_t cpu_ns = 0;  // of a node: CPU time of its thread, which leaves out waiting
  int64_t group = -1;  // the lowest of the ranks that do this together; -1: this rank alone
};

// What a rank's streams do in its steps.
//
//   RETURN_IF_ERROR(recorder.BeginStep());
//   ASSIGN_OR_RETURN(const int64_t begin, recorder.Mark(TraceRecorder::kCompute));
//   ... work for the compute stream ...
//   ASSIGN_OR_RETURN(const int64_t end, recorder.Mark(TraceRecorder::kCompute));
//   recorder.Add({name, &detail, 0, 0, ...}, TraceRecorder::kCompute, begin, end);
//   ...
//   RETURN_IF_ERROR(recorder.EndStep());
//
// Marks of a stream are the business of the thread that gives it work; any thread may add. All else is called
// while no step runs. The streams outlive it.
class TraceRecorder {
 public:
  enum Of { kCompute, kComm };  // streams
  static constexpr int kStreams = 2;

  static absl::StatusOr<std::unique_ptr<TraceRecorder>> Create(device::Stream* compute, device::Stream* comm);

  // Of all steps that follow; forgets what there is.
  absl::Status Reserve(int64_t events, int64_t compute_marks_per_step, int64_t comm_marks_per_step);

  absl::Status BeginStep();
  absl::StatusOr<int64_t> Mark(Of stream) { return timers_[stream].Mark(); }
  // `event` lasts from one mark of the stream to another.
  void Add(const TraceEvent& event, Of stream, int64_t begin, int64_t end);
  // Reads the times of what was added since BeginStep. Waits until all marks are reached.
  absl::Status EndStep();

  const std::vector<TraceEvent>& events() const { return events_; }  // of steps that ended
  int64_t dropped() const { return dropped_; }

 private:
  struct Span {
    Of stream;
    int64_t begin, end;
  };
  TraceRecorder(device::Stream* compute, device::Stream* comm)
      : timers_{device::StreamTimer(compute), device::StreamTimer(comm)} {}

  device::StreamTimer timers_[kStreams];
  std::unique_ptr<device::ClockReference> clock_;
  std::mutex mutex_;  // of what Add changes
  std::vector<TraceEvent> events_;
  std::vector<Span> open_;  // of the last events, whose times are not known yet
  int64_t dropped_ = 0;
};

// What the ranks of a run did. A value; copies share the names.
class Trace {
 public:
  explicit Trace(int64_t ranks = 0) : ranks_(ranks), names_(std::make_shared<std::set<std::string>>()) {}
  // A copy of the event, names included, of a rank below ranks().
  void Add(int64_t rank, TraceEvent event);
  int64_t ranks() const { return static_cast<int64_t>(ranks_.size()); }
  const std::vector<TraceEvent>& events(int64_t rank) const { return ranks_[rank]; }
  int64_t num_events() const;

 private:
  const std::string* Name(const std::string& name) { return &*names_->insert(name).first; }
  std::vector<std::vector<TraceEvent>> ranks_;
  std::shared_ptr<std::set<std::string>> names_;
};

// When a process entered and left each of several barriers by its own NowNanos(), and which boot of which
// machine it runs in: processes of one boot have one clock.
struct ClockSamples {
  uint64_t boot = 0;
  std::vector<int64_t> entered, left;
};
// By process, what its clock is ahead of that of process 0, in ns: the middle of what the barriers allow,
// since nobody leaves one before all have entered. Off by at most half the shortest time that the two were in
// one.
std::vector<int64_t> ClockOffsets(const std::vector<ClockSamples>& processes);

// Time that ranks spent in exchanges, waiting for peers included, and the part of it in which their compute
// queue worked on something else: communication that is hidden.
struct CommunicationTime {
  double seconds = 0, hidden_seconds = 0;  // of all ranks together
  double hidden() const { return seconds > 0 ? hidden_seconds / seconds : 0; }
};
CommunicationTime CommunicationOf(const Trace& trace);

// Trace Event Format (opens in Perfetto and chrome://tracing): pid = rank, tid = lane; ts and dur in
// microseconds. Arrows go from the rank that comes first to a collective to each of the others, and from a
// send to its receive.
std::string ChromeTrace(const Trace& trace);

}  // namespace moe::runtime
