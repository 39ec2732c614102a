#include <algorithm>
#include <limits>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "moe/base/json_reader.h"
#include "moe/base/status.h"
#include "moe/inspect/timeline.h"

namespace moe::inspect {
namespace {

constexpr int kCommunicationLane = 1, kActionLane = 2;

// "F0.3" -> kind, chunk, microbatch; also the names that ActionToString gives to the rest.
bool ParseAction(const std::string& name, TimelineSpan* span) {
  static constexpr absl::string_view kLetters = "FBIW";
  span->what = name;
  if (const size_t kind = name.empty() ? absl::string_view::npos : kLetters.find(name[0]);
      kind != absl::string_view::npos && name.size() > 1) {
    const std::vector<absl::string_view> parts = absl::StrSplit(absl::string_view(name).substr(1), '.');
    if (parts.size() == 2 && absl::SimpleAtoi(parts[0], &span->chunk) &&
        absl::SimpleAtoi(parts[1], &span->microbatch)) {
      span->kind = static_cast<TimelineSpan::Kind>(kind);
      return true;
    }
  }
  if (name == "update") {
    span->kind = TimelineSpan::kUpdate;
  } else if (name == "reset" || name == "report") {
    span->kind = TimelineSpan::kOther;
  } else if (absl::StartsWith(name, "send ") || absl::StartsWith(name, "recv ")) {
    span->kind = TimelineSpan::kTransfer;
  } else {
    return false;
  }
  return true;
}

struct RankTrace {
  std::vector<TimelineSpan> actions, communication;
};

// One event; only those of kind X are looked at, and only actions and communication are kept.
absl::Status ReadEvent(JsonReader* json, const Mesh& mesh, std::map<int64_t, RankTrace>* ranks) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  constexpr double kLatest = 1e18;  // microseconds
  std::string kind, name, category;
  int64_t rank = -1, lane = -1;
  double begin = -1, duration = -1;
  JsonFields fields(json);
  fields.Optional().Text("ph", kTraceLimits.string_bytes, &kind);
  fields.Optional().Int("pid", 0, kMost, &rank);
  fields.Optional().Int("tid", 0, kMost, &lane);
  fields.Optional().Number("ts", 0, kLatest, &begin);
  fields.Optional().Number("dur", 0, kLatest, &duration);
  fields.Optional().Text("name", kTraceLimits.string_bytes, &name);
  fields.Optional().Text("cat", kTraceLimits.string_bytes, &category);
  RETURN_IF_ERROR(fields.Read());
  if (kind != "X") return absl::OkStatus();
  if (rank < 0 || lane < 0 || begin < 0 || duration < 0 || name.empty()) {
    return json->Error("an event of kind X without pid, tid, ts, dur or name");
  }
  if (rank >= mesh.num_ranks()) {
    return json->Error(
        absl::StrCat("an event of rank ", rank, "; the plan has ", mesh.num_ranks(), " ranks"));
  }
  TimelineSpan span;
  span.begin = begin * 1e-6;
  span.end = span.begin + duration * 1e-6;
  RankTrace& trace = (*ranks)[rank];
  if (lane == kActionLane && ParseAction(name, &span)) {
    trace.actions.push_back(std::move(span));
  } else if (lane == kCommunicationLane || category == "collectives") {
    span.kind = TimelineSpan::kCollective;
    span.what = std::move(name);
    trace.communication.push_back(std::move(span));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::map<int64_t, RankTrace>> ReadRanks(absl::string_view text, const Mesh& mesh) {
  const auto wrong = [](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("not a trace of this runtime: ", what));
  };
  std::map<int64_t, RankTrace> ranks;
  JsonReader json(text, kTraceLimits);
  JsonFields fields(&json);
  fields.Value("traceEvents", [&] {
    return json.List(kTraceLimits.values, [&] { return ReadEvent(&json, mesh, &ranks); });
  });
  absl::Status read = fields.Read();
  if (read.ok()) read = json.End();
  if (!read.ok()) return wrong(read.message());
  for (auto& [rank, trace] : ranks) {
    const auto earlier = [](const TimelineSpan& a, const TimelineSpan& b) { return a.begin < b.begin; };
    std::stable_sort(trace.actions.begin(), trace.actions.end(), earlier);
    std::stable_sort(trace.communication.begin(), trace.communication.end(), earlier);
  }
  if (ranks.empty()) return wrong("no events");
  return ranks;
}

// Steps of one rank: [first, last) of its actions. A step ends with its update or, in runs without one, where
// a microbatch comes round again.
std::vector<std::pair<size_t, size_t>> StepsOf(const std::vector<TimelineSpan>& actions) {
  std::vector<std::pair<size_t, size_t>> steps;
  size_t first = 0;
  bool updated = false;
  for (size_t i = 0; i < actions.size(); ++i) {
    const bool begins =
        actions[i].what == "reset" || (updated && actions[i].kind <= TimelineSpan::kWeightGrad);
    if (begins && i > first && updated) {
      steps.emplace_back(first, i);
      first = i;
      updated = false;
    } else if (begins && actions[i].what == "reset") {
      first = i;  // a step that the trace does not hold whole
    }
    updated |= actions[i].kind == TimelineSpan::kUpdate;
  }
  if (updated) steps.emplace_back(first, actions.size());
  return steps;
}

}  // namespace

absl::StatusOr<Timeline> MeasuredTimeline(absl::string_view chrome_trace, const Mesh& mesh,
                                          const TraceOptions& options) {
  absl::StatusOr<std::map<int64_t, RankTrace>> ranks = ReadRanks(chrome_trace, mesh);
  if (!ranks.ok()) return ranks.status();
  Timeline t;
  t.seconds = true;
  const bool all = static_cast<int>(ranks->size()) <= options.max_rows;
  size_t chosen = 0;
  int microbatches = 0;
  for (const auto& [rank, trace] : *ranks) {
    const int64_t stage = mesh.Stage(rank);
    if (!all && rank % mesh.ranks_per_stage() != 0) continue;
    const auto steps = StepsOf(trace.actions);
    const size_t index = options.step < 0 ? steps.size() - 1 : static_cast<size_t>(options.step);
    if (steps.empty() || index >= steps.size()) {
      return absl::NotFoundError(
          absl::StrCat("the trace holds ", steps.size(), " whole steps of rank ", rank,
                       options.step < 0 ? "" : absl::StrCat(", not a step ", options.step)));
    }
    chosen = index;
    const auto [first, last] = steps[index];
    std::vector<TimelineSpan> spans(trace.actions.begin() + first, trace.actions.begin() + last);
    double begin = spans.front().begin, end = begin;
    for (const TimelineSpan& s : spans) {
      end = std::max(end, s.end);
      microbatches = std::max(microbatches, s.microbatch + 1);
      t.many_chunks |= s.chunk >= 0 && s.chunk != stage && s.kind <= TimelineSpan::kWeightGrad;
    }
    for (const TimelineSpan& s : trace.communication) {
      if (s.begin >= begin && s.end <= end) spans.push_back(s);
    }
    t.rows.push_back(
        all ? absl::StrCat("rank ", rank, mesh.num_stages() > 1 ? absl::StrCat(" (stage ", stage, ")") : "")
            : absl::StrCat("stage ", stage, " (rank ", rank, ")"));
    t.spans.push_back(std::move(spans));
  }
  t.title = absl::StrCat(microbatches, microbatches == 1 ? " microbatch, " : " microbatches, ", ranks->size(),
                         ranks->size() == 1 ? " rank" : " ranks");
  t.source = absl::StrCat("measured: step ", chosen, " of the trace");
  // Time counts from the first action.
  cost::Measure(&t);
  const double zero = t.begin;
  for (auto& row : t.spans) {
    for (TimelineSpan& s : row) s.begin -= zero, s.end -= zero;
  }
  cost::Measure(&t);
  return t;
}

}  // namespace moe::inspect
