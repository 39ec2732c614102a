#include "moe/testing/trace_check.h"

#include <cmath>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "moe/cost/node_cost.h"
#include "moe/cost/step_runs.h"
#include "moe/ir/conversion_parts.h"

namespace moe::testing {
namespace {

// Of all ranks of a stage, in a step.
struct Counted {
  int64_t runs = 0;
  double bytes = 0;
  double slack = 0;  // bytes that rounding may make more or less
  double most = 1;   // times `bytes` that may be sent
  bool at_most = false;
};
struct Seen {
  int64_t runs = 0, bytes = 0;
};
using Key = std::tuple<int64_t, std::string, std::string>;  // stage, op, result

void AddNode(const Node& n, const Mesh& mesh, int64_t runs, Counted* out) {
  out->runs += runs;
  out->bytes += cost::CommunicationCost(n, mesh).bytes * static_cast<double>(runs);
  for (const Value& v : n.operands()) {
    // Any share of the rows may have to go elsewhere, and a cell may have more than its expected rows.
    if (v.type().ragged >= 0) out->at_most = true, out->most = 3;
  }
  if (!HasConversionParts(n)) {
    out->slack += 128.0 * static_cast<double>(runs);
    return;
  }
  const absl::StatusOr<std::vector<ConversionPart>> parts = ConversionParts(n, mesh);
  if (!parts.ok()) return;
  for (const ConversionPart& part : *parts) {
    for (const ConversionStep& step : part.steps) {
      out->at_most |= step.kind == StepKind::kPermute;
      // An element for each peer, and a scale for each piece.
      out->slack += 16.0 * static_cast<double>(mesh.Size(step.axes()) + 1) * static_cast<double>(runs);
    }
  }
}

std::string Difference(const Counted& counted, const Seen& seen) {
  if (seen.runs != counted.runs) {
    return absl::StrCat("ran ", seen.runs, " times, not ", counted.runs);
  }
  const double sent = static_cast<double>(seen.bytes);
  const bool too_much = sent > counted.most * counted.bytes + counted.slack;
  const bool too_little = !counted.at_most && sent < counted.bytes - counted.slack;
  if (!too_much && !too_little) return "";
  return absl::StrCat("sent ", seen.bytes, " bytes, not ", counted.bytes);
}

}  // namespace

std::string UnlikeCounted(const Program& program, const runtime::Trace& trace) {
  const Mesh& mesh = program.module->mesh();
  const int64_t ranks = mesh.ranks_per_stage();
  const cost::StepRuns runs(program);
  std::map<Key, Counted> counted;
  std::map<Key, Seen> seen;
  const std::vector<std::vector<Action>> actions = cost::ActionsOf(program);
  for (size_t stage = 0; stage < actions.size(); ++stage) {
    const int64_t s = static_cast<int64_t>(stage);
    std::set<const Function*> functions;
    for (const Action& a : actions[stage])
      functions.insert(FunctionOf(*program.module, a, static_cast<int>(stage)));
    for (const Function* f : functions) {
      if (f == nullptr) continue;
      for (const auto& n : f->body()) {
        if (n->Is("comm.done")) continue;  // waits, and does nothing
        AddNode(*n, mesh, runs.Of(*n) * ranks, &counted[{s, n->op_name(), n->result_name()}]);
      }
    }
    for (const cost::BoundarySend& send : cost::BoundariesSentBy(program, static_cast<int>(stage))) {
      Counted& c = counted[{s, "send", send.name}];
      c.runs += send.runs * ranks;
      c.bytes += send.bytes * static_cast<double>(send.runs * ranks);
    }
  }
  for (int64_t rank = 0; rank < trace.ranks(); ++rank) {
    for (const runtime::TraceEvent& e : trace.events(rank)) {
      const int64_t stage = mesh.Stage(rank);
      Key key(stage, e.name, e.detail == nullptr ? "" : *e.detail);
      if (e.lane == 2) {
        absl::string_view name = e.name;  // "send act.0 mb3 -> stage 1"
        if (!absl::StartsWith(name, "send ")) continue;
        name.remove_prefix(5);
        key = {stage, "send", std::string(name.substr(0, name.find(' ')))};
      }
      ++seen[key].runs;
      seen[key].bytes += e.bytes;
    }
  }
  std::string out;
  const auto say = [&](const Key& key, const std::string& what) {
    const auto& [stage, op, result] = key;
    if (!what.empty()) absl::StrAppend(&out, "stage ", stage, ", ", op, " ", result, ": ", what, "\n");
  };
  for (const auto& [key, c] : counted) {
    const auto it = seen.find(key);
    say(key, Difference(c, it == seen.end() ? Seen() : it->second));
  }
  for (const auto& [key, s] : seen) {
    if (counted.count(key) == 0) say(key, "ran, and is not counted");
  }
  return out;
}

}  // namespace moe::testing
