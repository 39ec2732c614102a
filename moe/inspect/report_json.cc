#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/cost/node_cost.h"
#include "moe/cost/step_runs.h"
#include "moe/inspect/buffers.h"
#include "moe/inspect/report.h"
#include "moe/inspect/timeline.h"
#include "moe/ir/scope.h"
#include "moe/ir/state.h"

namespace moe::inspect {
namespace {

using Json = nlohmann::ordered_json;

// Costs are means over ranks; nobody sends a part of a byte.
int64_t Whole(double bytes) { return std::llround(bytes); }

Json NodeJson(const Program& program, const Function& f, const Node& n) {
  const Mesh& mesh = program.module->mesh();
  Json operands = Json::array(), results = Json::array();
  for (const Value& v : n.operands()) operands.push_back(v.name());
  for (int i = 0; i < n.num_results(); ++i) {
    const Dims local = n.type(i).LocalDims(mesh);
    results.push_back({{"name", n.result_name(i)},
                       {"type", TypeToString(n.type(i), mesh)},
                       {"local", std::vector<int64_t>(local.begin(), local.end())},
                       {"bytes", ValueBytes(program, f, Value{const_cast<Node*>(&n), i})}});
  }
  Json out = {{"op", n.op_name()},
              {"scope", n.scope},
              {"phase", std::string(PhaseName(n.phase))},
              {"operands", operands},
              {"results", results}};
  if (!n.provenance.pass.empty()) out["inserted_by"] = n.provenance.pass;
  if (!n.provenance.reason.empty()) out["reason"] = n.provenance.reason;
  if (IsPlacementChange(n)) {
    out["collective"] = {{"kind", CollectiveKind(n, mesh)},
                         {"axes", CollectiveAxes(n, mesh)},
                         {"bytes_sent", Whole(cost::CommunicationCost(n, mesh).bytes)},
                         {"bytes_across_nodes", Whole(cost::CommunicationCost(n, mesh).across)},
                         {"local", !IsCollective(n)}};
  }
  return out;
}

Json TimelineJson(const Timeline& t) {
  Json rows = Json::array();
  for (size_t r = 0; r < t.rows.size(); ++r) {
    Json spans = Json::array();
    for (const TimelineSpan& s : t.spans[r]) {
      spans.push_back({{"what", s.what}, {"microbatch", s.microbatch}, {"begin", s.begin}, {"end", s.end}});
    }
    rows.push_back({{"row", t.rows[r]}, {"spans", spans}});
  }
  return {{"source", t.source},
          {"unit", t.seconds ? "seconds" : "forwards"},
          {"bubble", t.bubble},
          {"rows", rows}};
}

Json StageJson(const Program& program, const StageView& view, const ReportOptions& options) {
  Json functions = Json::array();
  for (const StageFunction& f : view.functions) {
    if (!options.function.empty() && f.function->name() != options.function) continue;
    Json nodes = Json::array();
    for (const auto& n : f.function->body()) {
      if (options.layer >= 0 && ParseScope(n->scope).layer != options.layer) continue;
      nodes.push_back(NodeJson(program, *f.function, *n));
    }
    functions.push_back({{"name", f.function->name()}, {"chunk", f.chunk}, {"nodes", nodes}});
  }
  Json collectives = Json::array();
  for (const CollectiveTotal& t : TotalCollectives(program, view)) {
    collectives.push_back({{"phase", std::string(PhaseName(t.phase))},
                           {"kind", t.kind},
                           {"axes", t.axes},
                           {"nodes", t.nodes},
                           {"bytes", Whole(t.bytes)},
                           {"runs_per_step", t.runs},
                           {"bytes_per_step", Whole(t.bytes_per_step())},
                           {"bytes_across_nodes_per_step", Whole(t.across_per_step())}});
  }
  Json sends = Json::array();
  for (const cost::BoundarySend& s : cost::BoundariesSentBy(program, view.stage)) {
    sends.push_back(
        {{"value", s.name}, {"to_stage", s.to_stage}, {"bytes", Whole(s.bytes)}, {"runs_per_step", s.runs}});
  }
  Json out = {{"stage", view.stage},         {"first_rank", view.first_rank},
              {"last_rank", view.last_rank}, {"contents", view.contents},
              {"layers", view.layers},       {"functions", functions},
              {"collectives", collectives},  {"sends", sends}};
  if (view.stage < static_cast<int>(program.memory.stages.size())) {
    Json memory = {{"peak_bytes", program.memory.stages[view.stage].peak_bytes()},
                   {"spill_bytes", program.memory.stages[view.stage].spill_bytes}};
    for (const MemoryShare& s : MemoryShares(program, view.stage))
      memory["by_category"][s.category] = s.bytes;
    out["memory"] = memory;
  }
  return out;
}

}  // namespace

absl::StatusOr<std::string> ReportJson(const Program& program, const ReportOptions& options) {
  RETURN_IF_ERROR(CheckReportOptions(program, options));
  Json stages = Json::array();
  for (int s = 0; s < NumStages(program); ++s) {
    if (options.stage >= 0 && s != options.stage) continue;
    stages.push_back(StageJson(program, ViewStage(program, s), options));
  }
  Json notes = Json::array();
  for (const auto& [pass, line] : program.notes) notes.push_back({{"pass", pass}, {"note", line}});
  Json maps = Json::object();
  for (const auto& s : program.module->states()) {
    if (AttrString(s->attributes, "kind") != "expert_map") continue;
    maps[s->name] = {{"experts", AttrInt(s->attributes, "experts")},
                     {"slots", std::get<std::vector<int64_t>>(s->attributes.at("slots"))}};
  }
  const Json out = {
      {"program", program.module->name()},
      {"mesh", program.module->mesh().ToString()},
      {"schedule", {{"name", program.schedule.name}, {"microbatches", program.schedule.microbatches}}},
      {"timeline", TimelineJson(EstimatedTimeline(program, options.target))},
      {"expert_maps", maps},
      {"passes", notes},
      {"stages", stages}};
  return out.dump(1) + "\n";
}

}  // namespace moe::inspect
