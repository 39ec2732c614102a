// What belongs to one pipeline stage of a program, and what it says to other ranks: the facts that every
// report and picture starts from.
//
//   const StageView view = ViewStage(program, 1);
//   // stage 1 of 2, ranks 4-7, "layers 2-3, head", functions forward1, backward1, update1, report1
//   for (const CollectiveUse& c : CollectivesOf(program, view)) ...
//
// Works at any point of a compilation: before partition-stages there is one stage with @step, before
// split-phases a stage has @chunk<c>. Views point into the program, which must outlive them and stay as it
// is. Not thread-safe with writers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/cost/node_cost.h"
#include "moe/ir/program.h"

namespace moe::inspect {

struct StageFunction {
  const Function* function = nullptr;
  int chunk = -1;  // of @forward<c>, @backward<c>, @chunk<c>; else -1
};

struct StageView {
  int stage = 0, stages = 1;
  int64_t first_rank = 0, last_rank = 0;
  std::vector<StageFunction> functions;  // forwards, backwards, update, report
  std::vector<int64_t> layers;
  std::string contents;  // "embedding, layers 0-1"
  int64_t forward_nodes = 0, backward_nodes = 0, update_nodes = 0;
};

int NumStages(const Program& program);
StageView ViewStage(const Program& program, int stage);

// The stage and the chunk of a function; chunk -1 where it has none.
struct FunctionPlace {
  int stage = 0, chunk = -1;
};
FunctionPlace PlaceOf(const Program& program, FunctionRole role);

bool IsCollective(const Node& node);       // comm.* that talks to other ranks, also over stages
bool IsPlacementChange(const Node& node);  // any comm.*, local ones too
// "all_to_all"; of a reshard its steps, "reduce_scatter+all_gather".
std::string CollectiveKind(const Node& node, const Mesh& mesh);
// Axes in words: an alias where one fits, or aliases side by side ("dp.tp"). Where the same axes have two
// names, the experts' (ep, etp, edp) are meant in an MoE block and attention's (dp, cp, tp) elsewhere.
std::string AxesText(absl::Span<const AxisId> axes, const Mesh& mesh, absl::string_view scope);
// What the axes of the mesh stand for: "a of 2 is tp, etp; b of 2 is edp; c of 2 is ep; dp is b.c". Empty for a
// mesh of one rank.
std::string AxesMeaning(const Mesh& mesh);
// A type on one line: "f32[8@dp,1,128,128] partial(tp)".
std::string TypeText(const Type& type, const Mesh& mesh, absl::string_view scope);
// "ep"; "stages 0,1" for reductions over stages.
std::string CollectiveAxes(const Node& node, const Mesh& mesh);

// The levels of a collective that is done inside nodes and across them, in order; none for others.
struct CollectiveLevel {
  std::string axes;
  std::string where;  // " in nodes", " across nodes"
  cost::CommCost cost;
};
std::vector<CollectiveLevel> LevelsOfCollective(const Node& node, const Mesh& mesh);

struct CollectiveUse {
  const Node* node = nullptr;
  const Function* function = nullptr;
  Phase phase = Phase::kForward;
  std::string kind, axes;
  double bytes = 0;   // that one rank sends, each time the node runs
  double across = 0;  // of these, bytes that leave the node of ranks
  int64_t runs = 0;   // of the node in a step
};
// All collectives of a stage in order of its functions.
std::vector<CollectiveUse> CollectivesOf(const Program& program, const StageView& view);

// Collectives of a stage that agree in phase, kind, axes and runs, added up.
struct CollectiveTotal {
  Phase phase = Phase::kForward;
  std::string kind, axes;
  int64_t runs = 0;  // of each node in a step
  int64_t nodes = 0;
  double bytes = 0, across = 0;  // when each node runs once; `across`: what leaves the node of a rank
  double bytes_per_step() const { return bytes * static_cast<double>(runs); }
  double across_per_step() const { return across * static_cast<double>(runs); }
};
std::vector<CollectiveTotal> TotalCollectives(const Program& program, const StageView& view);

// Bytes of a value on one rank: its buffer in the memory plan where there is one, else what its type asks
// for.
int64_t ValueBytes(const Program& program, const Function& function, const Value& value);

// A value's name without the scope of the node that is described: "layers.2.moe.d" in "layers.2.moe" -> "d",
// "d.layers.2.moe.d" -> "d.d".
std::string LocalName(absl::string_view name, absl::string_view scope);

// NotFound, with what is legal, unless the program has that stage.
absl::Status CheckStage(const Program& program, int stage);

}  // namespace moe::inspect
