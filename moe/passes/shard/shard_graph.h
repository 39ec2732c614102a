// The shard pass's view of one function: values and nodes by index, with what the seeds say about each.
//
//   ShardGraph g;
//   RETURN_IF_ERROR(BuildShardGraph(&function, seeds, states, &planner, &signatures, &g));
//   ShardSearch search(g, &planner, policy, microbatches, &memo);      // shard_search.h
//   ASSIGN_OR_RETURN(const ShardPlan plan, search.Run());
//   RETURN_IF_ERROR(EmitPlan(g, plan, &planner).status());             // shard_emit.h
//
// A ShardGraph refers to the function and the planner; it is rebuilt for other seeds. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "moe/ir/graph.h"
#include "moe/ir/registry.h"
#include "moe/ir/state_layout.h"
#include "moe/passes/shard/conversion.h"
#include "moe/passes/shard/seeds.h"

namespace moe::passes {

// Where a state lives. Accumulators that are only reduced at the end of a step are `open`: their dims are
// fixed, and they keep whatever partial the values added to them have. The first use decides; `placement` is
// then that.
struct StatePlacement {
  bool open = false;
  bool decided = false;  // open: by the functions placed so far
  Placement placement;   // open and undecided: the dims
  Placement settled;     // open: what it is reduced to once a step
  Placement compute;     // parameters and their gradients: where the parameter computes
  bool is_parameter = false, is_gradient = false, is_moment = false, is_copy = false;
};
using StatePlacements = std::map<std::string, StatePlacement>;

// `layout`: where persistent state must live; may be null.
StatePlacements SeedStates(const Module& module, const Seeds& seeds, const StateLayout* layout);

inline constexpr PlacementId kNoPlacement = -1;

enum class SeedKind : uint8_t {
  kNone,
  kFixed,  // the value becomes `seed`
  kOpen,   // its dims become those of `seed`, its sums stay partial; they are reduced to `settled` later
};

struct ShardValue {
  Value value;
  double bytes = 0;                  // of the global value
  int producer = -1;                 // index of the node; -1: an argument
  int result = 0;                    // of the producer
  PlacementId given = kNoPlacement;  // arguments: placement on entry
  // A constraint: the compute placement of a parameter, the storage of a moment or a working copy.
  PlacementId stationary = kNoPlacement;
  bool parameter = false;  // stationary everywhere but in the update
  SeedKind seed_kind = SeedKind::kNone;
  PlacementId seed = kNoPlacement, settled = kNoPlacement;
  // Final gradient of a parameter that computes there, or a sum of replicas: made on these axes.
  PlacementId gradient_of = kNoPlacement;
  uint64_t blocked = 0;    // dims that a consumer, through pass-through factors, needs whole
  std::string open_state;  // the accumulator that holds this value
};

enum class Treatment : uint8_t {
  kSearch,      // placed by rule and cost
  kAccumulate,  // takes the placement of its state
  kSettled,     // takes its operand as it is, but never partial (stage_reduce)
  kWritten,     // placed in the text: operands and results as they are there
};

struct ShardNode {
  Node* node = nullptr;
  const OpDef* op = nullptr;
  const ShardingRule* rule = nullptr;
  std::vector<int64_t> extents;
  std::vector<int> operands, results;  // values
  Treatment treatment = Treatment::kSearch;
  int hint = -1;                  // value whose placement the result should take
  bool strong_hint = false;       // also under policies without hints
  int signature = 0;              // equal for nodes that differ in operand placements alone
  std::vector<bool> in_operands;  // per factor
  std::vector<PlacementId> written_operands, written_results;
};

struct ShardGraph {
  Function* function = nullptr;
  std::vector<ShardValue> values;
  std::vector<ShardNode> nodes;
  std::vector<int> results;  // values that the function returns
  // Axes on which the residual stream is sharded: partials over them can be scattered.
  uint64_t residual_axes = 0;
  uint64_t routed_axes = 0;  // axes that shard tokens and share the experts
  absl::flat_hash_map<Value, int> index;
};

using SignatureTable = std::map<std::vector<int64_t>, int>;

// Also erases nodes without uses and effects: they would pay for collectives.
// Errors: a node whose rule or extents are inconsistent.
absl::Status BuildShardGraph(Function* function, const Seeds& seeds, const StatePlacements& states,
                             ConversionPlanner* planner, SignatureTable* signatures, ShardGraph* graph);

// Name of each dim of a value, from the factors of the rule of the node that made it: "batch", "experts", ...
std::vector<std::string> DimNames(Value value);

}  // namespace moe::passes
