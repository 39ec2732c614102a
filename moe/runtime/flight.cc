#include "moe/runtime/flight.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/base/json_reader.h"
#include "moe/base/status.h"
#include "moe/ir/limits.h"
#include "nlohmann/json.hpp"

namespace moe::runtime {
namespace {

using ::nlohmann::ordered_json;

constexpr const char* kStates[] = {"running", "done", "failed"};

// Milliseconds are enough, and shorter to read.
double Rounded(double seconds) { return static_cast<double>(static_cast<int64_t>(seconds * 1e3)) / 1e3; }

std::string Seconds(double s) { return absl::StrFormat(s < 9.95 ? "%.1f s" : "%.0f s", s); }

// The members that have not come to a call that `r` waits in.
std::vector<int64_t> Missing(const comm::RecordedCall& call, int64_t r,
                             const std::map<int64_t, const FlightRecord*>& by_rank,
                             std::vector<int64_t>* present) {
  std::vector<int64_t> missing;
  for (int64_t q : call.ranks) {
    if (q == r) continue;
    bool came = false;
    const auto it = by_rank.find(q);
    if (it != by_rank.end()) {
      for (const comm::RecordedCall& theirs : it->second->calls) {
        came = came ||
               (theirs.channel == call.channel && theirs.ranks == call.ranks && theirs.number >= call.number);
      }
    }
    if (!came) missing.push_back(q);
    if (came && present != nullptr) present->push_back(q);
  }
  return missing;
}

std::string Ranks(const std::vector<int64_t>& ranks) {
  return absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(ranks, ", "));
}

std::string LastAction(const FlightRecord& r) {
  if (r.unknown) return "it never said anything";
  if (r.actions.empty()) {
    return r.stale ? absl::StrCat("it had not begun a step when it was last heard of, ", Seconds(r.silent),
                                  " before")
                   : "it had not begun a step";
  }
  return absl::StrCat("its last action was ", r.actions[0].name,
                      r.node.empty() ? "" : absl::StrCat(" (", r.node, ")"), ", ",
                      Seconds(r.actions[0].ago + r.silent), " ago");
}

}  // namespace

void ActionLog::Action(const std::string* name, int64_t now_ns) {
  const uint64_t n = count_.load(std::memory_order_relaxed);
  names_[n % kKept].store(name, std::memory_order_relaxed);
  begin_[n % kKept].store(now_ns, std::memory_order_relaxed);
  count_.store(n + 1, std::memory_order_release);
}

std::vector<ActionLog::Entry> ActionLog::Last() const {
  std::vector<Entry> out;
  const uint64_t n = count_.load(std::memory_order_acquire);
  for (uint64_t i = 0; i < std::min<uint64_t>(n, kKept); ++i) {
    const size_t at = (n - 1 - i) % kKept;
    out.push_back({names_[at].load(std::memory_order_relaxed), begin_[at].load(std::memory_order_relaxed)});
  }
  return out;
}

bool FlightRecord::Waits() const {
  return std::any_of(calls.begin(), calls.end(), [](const comm::RecordedCall& c) { return c.Waits(); });
}

std::string CoordinatesText(const Mesh& mesh, int64_t rank) {
  std::vector<std::string> parts = {absl::StrCat("stage ", mesh.Stage(rank))};
  // By the names that users give, where the mesh has them; its own axes may be finer.
  bool named = false;
  for (const char* name : {"dp", "cp", "tp"}) {
    const AxisList axes = mesh.Alias(name);
    named = named || !axes.empty();
    if (mesh.Size(axes) > 1) parts.push_back(absl::StrCat(name, " ", mesh.Index(rank, axes)));
  }
  for (AxisId a : mesh.SpmdAxes()) {
    if (!named && mesh.size(a) > 1)
      parts.push_back(absl::StrCat(mesh.name(a), " ", mesh.Coordinate(rank, a)));
  }
  return absl::StrJoin(parts, ", ");
}

std::string FlightJson(const FlightRecord& r) {
  ordered_json j = {{"rank", r.rank}, {"place", r.place},     {"host", r.host}, {"pid", r.pid},
                    {"step", r.step}, {"program", r.program}, {"node", r.node}, {"error", r.error}};
  if (r.stale) j["silent_seconds"] = Rounded(r.silent);
  if (r.unknown) j["unknown"] = true;
  j["actions"] = ordered_json::array();
  for (const FlightRecord::Action& a : r.actions) {
    j["actions"].push_back({{"name", a.name}, {"seconds_ago", Rounded(a.ago)}});
  }
  j["calls"] = ordered_json::array();
  for (const comm::RecordedCall& c : r.calls) {
    j["calls"].push_back({{"op", c.op},
                          {"what", c.what},
                          {"state", kStates[c.state]},
                          {"seconds", Rounded(c.seconds)},
                          {"ended_seconds_ago", Rounded(c.ago)},
                          {"group", c.ranks},
                          {"channel", c.channel},
                          {"number", c.number}});
  }
  return j.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

absl::StatusOr<FlightRecord> ParseFlight(absl::string_view text) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  constexpr int64_t kText = kFlightLimits.string_bytes;
  constexpr double kLongest = 1e12;  // seconds
  FlightRecord r;
  JsonReader json(text, kFlightLimits);
  JsonFields fields(&json);
  fields.Int("rank", 0, kMaxRanks - 1, &r.rank);
  fields.Text("place", kText, &r.place);
  fields.Text("host", kText, &r.host);
  fields.Int("pid", 0, kMost, &r.pid);
  fields.Int("step", 0, kMost, &r.step);
  fields.Text("program", kText, &r.program);
  fields.Text("node", kText, &r.node);
  fields.Text("error", kText, &r.error);
  fields.Value("actions", [&] {
    return json.List(ActionLog::kKept, [&] {
      FlightRecord::Action& action = r.actions.emplace_back();
      JsonFields of_action(&json);
      of_action.Text("name", kText, &action.name);
      of_action.Number("seconds_ago", -kLongest, kLongest, &action.ago);
      return of_action.Read();
    });
  });
  fields.Value("calls", [&] {
    return json.List(kFlightLimits.values, [&]() -> absl::Status {
      comm::RecordedCall& call = r.calls.emplace_back();
      std::string state;
      JsonFields of_call(&json);
      of_call.Text("op", kText, &call.op);
      of_call.Text("what", kText, &call.what);
      of_call.Text("state", kText, &state);
      of_call.Number("seconds", -kLongest, kLongest, &call.seconds);
      of_call.Number("ended_seconds_ago", -kLongest, kLongest, &call.ago);
      of_call.Value("group", [&] {
        return json.List(kFlightLimits.values, [&]() -> absl::Status {
          ASSIGN_OR_RETURN(const int64_t rank, json.Int(0, kMaxRanks - 1));
          call.ranks.push_back(rank);
          return absl::OkStatus();
        });
      });
      of_call.Text("channel", kText, &call.channel);
      of_call.Int("number", 0, kMost, &call.number);
      RETURN_IF_ERROR(of_call.Read());
      const auto known = std::find(std::begin(kStates), std::end(kStates), state);
      if (known == std::end(kStates)) return json.Error("the state of a call is running, done or failed");
      call.state = static_cast<comm::RecordedCall::State>(known - std::begin(kStates));
      return absl::OkStatus();
    });
  });
  RETURN_IF_ERROR(Annotate(fields.Read(), "not a flight record"));
  RETURN_IF_ERROR(Annotate(json.End(), "not a flight record"));
  return r;
}

Diagnosis Diagnose(const std::vector<FlightRecord>& records) {
  Diagnosis d;
  std::map<int64_t, const FlightRecord*> by_rank;
  for (const FlightRecord& r : records) by_rank[r.rank] = &r;
  // A rank that says nothing is at fault, whatever it said before. Otherwise those that others wait for and
  // that wait for nobody; in a circle, which no certified plan has, all.
  std::set<int64_t> waited_for, sinks, silent;
  for (const FlightRecord& r : records) {
    if (r.stale || r.unknown) silent.insert(r.rank);
    bool waits = false;
    for (const comm::RecordedCall& c : r.calls) {
      if (!c.Waits()) continue;
      const std::vector<int64_t> missing = Missing(c, r.rank, by_rank, nullptr);
      waits = waits || !missing.empty();
      waited_for.insert(missing.begin(), missing.end());
    }
    if (!waits) sinks.insert(r.rank);
  }
  std::set<int64_t> culprits = silent;
  if (culprits.empty()) {
    std::set_intersection(waited_for.begin(), waited_for.end(), sinks.begin(), sinks.end(),
                          std::inserter(culprits, culprits.end()));
    if (culprits.empty()) culprits = waited_for;
  }
  d.culprits.assign(culprits.begin(), culprits.end());
  if (culprits.empty()) return d;

  // Of those that wait for a culprit, the one that waits longest speaks.
  const FlightRecord* speaker = nullptr;
  const comm::RecordedCall* call = nullptr;
  for (const FlightRecord& r : records) {
    if (silent.count(r.rank) > 0) continue;
    for (const comm::RecordedCall& c : r.calls) {
      if (!c.Waits()) continue;
      const std::vector<int64_t> missing = Missing(c, r.rank, by_rank, nullptr);
      const bool of_culprit =
          std::any_of(missing.begin(), missing.end(), [&](int64_t q) { return culprits.count(q) > 0; }) ||
          std::any_of(c.ranks.begin(), c.ranks.end(), [&](int64_t q) { return silent.count(q) > 0; });
      if (of_culprit && (call == nullptr || c.seconds > call->seconds)) {
        speaker = &r;
        call = &c;
      }
    }
  }
  std::vector<std::string> about;
  if (call != nullptr) {
    // Transfers are named after what they do; their action may be another one, since they have threads of
    // their own.
    const bool transfer = call->op == "send" || call->op == "receive";
    d.text = absl::StrCat(
        "rank ", speaker->rank, " (", speaker->place, ") waits ", Seconds(call->seconds), " in ",
        transfer ? "" : absl::StrCat(call->op, " for "), call->what,
        transfer || speaker->actions.empty() ? "" : absl::StrCat(", action ", speaker->actions[0].name),
        "\n");
    std::vector<int64_t> present;
    Missing(*call, speaker->rank, by_rank, &present);
    present.erase(
        std::remove_if(present.begin(), present.end(), [&](int64_t q) { return culprits.count(q) > 0; }),
        present.end());
    if (!present.empty())
      about.push_back(
          absl::StrCat(Ranks(present), present.size() == 1 ? " is" : " are", " in the same call"));
  }
  for (int64_t q : culprits) {
    const auto it = by_rank.find(q);
    if (it == by_rank.end()) {
      about.push_back(absl::StrCat("nothing is known of rank ", q));
      continue;
    }
    const FlightRecord& r = *it->second;
    if (r.unknown || r.stale) {
      about.push_back(absl::StrCat(
          "rank ", q, " (", r.place, r.host.empty() ? "" : absl::StrCat(", process ", r.pid, " on ", r.host),
          ") does not answer", r.unknown ? "" : absl::StrCat(", silent for ", Seconds(r.silent)), ": ",
          LastAction(r)));
    } else {
      about.push_back(absl::StrCat("rank ", q, " (", r.place, ") never entered it: ", LastAction(r)));
    }
  }
  absl::StrAppend(&d.text, absl::StrJoin(about, "; "));
  return d;
}

}  // namespace moe::runtime
