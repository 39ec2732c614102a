#include "moe/runtime/trace.h"

#include <time.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/ir/registry.h"

namespace moe::runtime {

absl::string_view CategoryName(Category c) {
  switch (c) {
    case Category::kGemm:
      return "GEMM";
    case Category::kAttention:
      return "attention";
    case Category::kRouting:
      return "routing";
    case Category::kCollective:
      return "collectives";
    case Category::kOptimizer:
      return "optimizer";
    case Category::kOther:
      return "other";
  }
  return "?";
}

Category CategoryOf(const Node& n) {
  const std::string& op = n.op_name();
  if (op == "math.einsum") return n.num_operands() > 1 ? Category::kGemm : Category::kOther;
  if (absl::StartsWith(op, "nn.head_stats")) return Category::kGemm;
  if (absl::StartsWith(op, "nn.attention")) return Category::kAttention;
  if (absl::StartsWith(op, "moe.")) return Category::kRouting;
  if (n.op().Has(kCollective)) return Category::kCollective;
  if (absl::StartsWith(op, "optim.") || n.phase == Phase::kUpdate) return Category::kOptimizer;
  return Category::kOther;
}

int64_t ThreadCpuNanos() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec * int64_t{1000000000} + t.tv_nsec;
}

absl::StatusOr<std::unique_ptr<TraceRecorder>> TraceRecorder::Create(device::Stream* compute,
                                                                     device::Stream* comm) {
  std::unique_ptr<TraceRecorder> r(new TraceRecorder(compute, comm));
  ASSIGN_OR_RETURN(r->clock_, device::ClockReference::Create(compute));
  return r;
}

absl::Status TraceRecorder::Reserve(int64_t events, int64_t compute_marks_per_step,
                                    int64_t comm_marks_per_step) {
  events_.clear();
  open_.clear();
  dropped_ = 0;
  events_.reserve(events);
  open_.reserve(events);
  RETURN_IF_ERROR(timers_[kCompute].Reserve(compute_marks_per_step));
  return timers_[kComm].Reserve(comm_marks_per_step);
}

absl::Status TraceRecorder::BeginStep() {
  events_.resize(events_.size() - open_.size());  // of a step that failed
  open_.clear();
  for (device::StreamTimer& timer : timers_) timer.Clear();
  return clock_->Set();
}

void TraceRecorder::Add(const TraceEvent& event, Of stream, int64_t begin, int64_t end) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (events_.size() == events_.capacity()) {
    ++dropped_;
    return;
  }
  events_.push_back(event);
  open_.push_back({stream, begin, end});
}

absl::Status TraceRecorder::EndStep() {
  std::lock_guard<std::mutex> lock(mutex_);
  TraceEvent* event = events_.data() + (events_.size() - open_.size());
  for (const Span& span : open_) {
    ASSIGN_OR_RETURN(event->begin_ns, clock_->HostNanos(timers_[span.stream], span.begin));
    ASSIGN_OR_RETURN(event->end_ns, clock_->HostNanos(timers_[span.stream], span.end));
    ++event;
  }
  open_.clear();
  return absl::OkStatus();
}

void Trace::Add(int64_t rank, TraceEvent event) {
  event.name = Name(event.name)->c_str();
  if (event.detail != nullptr) event.detail = Name(*event.detail);
  ranks_[rank].push_back(event);
}

int64_t Trace::num_events() const {
  int64_t n = 0;
  for (const auto& events : ranks_) n += static_cast<int64_t>(events.size());
  return n;
}

std::vector<int64_t> ClockOffsets(const std::vector<ClockSamples>& processes) {
  std::vector<int64_t> offsets(processes.size(), 0);
  for (size_t p = 1; p < processes.size(); ++p) {
    const ClockSamples &lead = processes[0], &mine = processes[p];
    if (mine.boot == lead.boot || mine.entered.empty()) continue;
    int64_t least = INT64_MIN, most = INT64_MAX;
    for (size_t i = 0; i < mine.entered.size(); ++i) {
      least = std::max(least, mine.entered[i] - lead.left[i]);
      most = std::min(most, mine.left[i] - lead.entered[i]);
    }
    offsets[p] = least + (most - least) / 2;
  }
  return offsets;
}

CommunicationTime CommunicationOf(const Trace& trace) {
  using Span = std::pair<int64_t, int64_t>;
  int64_t all = 0, hidden = 0;
  for (int64_t rank = 0; rank < trace.ranks(); ++rank) {
    std::vector<Span> exchanges, work;  // of one queue each, so the spans of a list do not overlap
    for (const TraceEvent& e : trace.events(rank)) {
      if (e.lane == 2) continue;
      (e.category == Category::kCollective ? exchanges : work).push_back({e.begin_ns, e.end_ns});
    }
    std::sort(exchanges.begin(), exchanges.end());
    std::sort(work.begin(), work.end());
    size_t first = 0;
    for (const Span& x : exchanges) {
      all += x.second - x.first;
      while (first < work.size() && work[first].second <= x.first) ++first;
      for (size_t i = first; i < work.size() && work[i].first < x.second; ++i) {
        hidden += std::max<int64_t>(0, std::min(x.second, work[i].second) - std::max(x.first, work[i].first));
      }
    }
  }
  return {static_cast<double>(all) / 1e9, static_cast<double>(hidden) / 1e9};
}

namespace {

// One rank's part in what several ranks do together.
struct Part {
  int64_t rank;
  const TraceEvent* event;
};

// What belongs together: all parts of one run of a collective, or a send and its receive. The k-th of a name
// on one rank belongs to the k-th on its peers, since all of a group do the same in the same order.
using Meeting = std::tuple<std::string, int32_t, int64_t, int>;  // name, microbatch, group, k

std::map<Meeting, std::vector<Part>> MeetingsOf(const Trace& trace) {
  std::map<Meeting, std::vector<Part>> meetings;
  for (int64_t rank = 0; rank < trace.ranks(); ++rank) {
    std::map<Meeting, int> seen;
    for (const TraceEvent& e : trace.events(rank)) {
      if (e.group < 0 || e.detail == nullptr) continue;
      Meeting meeting(*e.detail, e.microbatch, e.group, 0);
      std::get<3>(meeting) = seen[meeting]++;
      meetings[meeting].push_back({rank, &e});
    }
  }
  return meetings;
}

// The part that the arrows start at: what is sent starts at its sender, anything else at whoever came first.
const Part& StartOf(const std::vector<Part>& parts) {
  return *std::min_element(parts.begin(), parts.end(), [](const Part& a, const Part& b) {
    const auto key = [](const Part& p) {
      return std::pair(!absl::StartsWith(p.event->name, "send "), p.event->begin_ns);
    };
    return key(a) < key(b);
  });
}

}  // namespace

std::string ChromeTrace(const Trace& trace) {
  int64_t start = INT64_MAX;
  for (int64_t rank = 0; rank < trace.ranks(); ++rank) {
    for (const TraceEvent& e : trace.events(rank)) start = std::min(start, e.begin_ns);
  }
  const auto microseconds = [](int64_t ns) { return static_cast<double>(ns) / 1e3; };
  std::string out = "{\"traceEvents\":[\n";
  bool first = true;
  const auto add = [&](const std::string& event) {
    absl::StrAppend(&out, first ? "" : ",\n", event);
    first = false;
  };
  static constexpr const char* kLanes[] = {"compute", "communication", "pipeline"};
  for (int64_t rank = 0; rank < trace.ranks(); ++rank) {
    add(absl::StrFormat(R"({"ph":"M","pid":%d,"name":"process_name","args":{"name":"rank %d"}})", rank,
                        rank));
    for (int lane = 0; lane < 3; ++lane) {
      add(absl::StrFormat(R"({"ph":"M","pid":%d,"tid":%d,"name":"thread_name","args":{"name":"%s"}})", rank,
                          lane, kLanes[lane]));
    }
    for (const TraceEvent& e : trace.events(rank)) {
      std::string args = absl::StrFormat(R"("microbatch":%d)", e.microbatch);
      if (e.detail) absl::StrAppend(&args, ",\"value\":\"", *e.detail, "\"");
      if (e.bytes > 0) absl::StrAppend(&args, ",\"bytes\":", e.bytes);
      add(absl::StrFormat(
          R"({"ph":"X","pid":%d,"tid":%d,"name":"%s","cat":"%s","ts":%.3f,"dur":%.3f,"args":{%s}})", rank,
          e.lane, e.name, std::string(CategoryName(e.category)), microseconds(e.begin_ns - start),
          microseconds(e.end_ns - e.begin_ns), args));
    }
  }
  // An end of an arrow belongs to the slice that its time falls into, so each lies where its slice begins, or
  // later where the arrow would run back in time.
  int64_t id = 0;
  for (const auto& [meeting, parts] : MeetingsOf(trace)) {
    const Part& from = StartOf(parts);
    for (const Part& to : parts) {
      const int64_t at = std::max(from.event->begin_ns, to.event->begin_ns);
      if (to.rank == from.rank || at > to.event->end_ns) continue;  // clocks of machines agree roughly only
      const char* const name = to.event->category == Category::kCollective ? "collective" : "transfer";
      const auto end = [&](const char* phase, const Part& part, int64_t ns, const char* binding) {
        add(absl::StrFormat(R"({"ph":"%s","pid":%d,"tid":%d,"name":"%s","cat":"flow","id":%d,"ts":%.3f%s})",
                            phase, part.rank, part.event->lane, name, id, microseconds(ns - start), binding));
      };
      end("s", from, from.event->begin_ns, "");
      end("f", to, at, R"(,"bp":"e")");
      ++id;
    }
  }
  out += "\n],\"displayTimeUnit\":\"ms\"}\n";
  return out;
}

}  // namespace moe::runtime
