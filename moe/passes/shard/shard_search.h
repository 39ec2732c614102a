// The search of the shard pass: one walk over a function in topological order that places each node as
// cheaply as the placements before it allow, and notes the conversions that this takes.
//
// Per node and axis, the candidates are the factors that some variant of an operand (or a hint) shards over
// it, none, and passing a partial where the op is linear; a stationary operand or result forces it. Per
// combination that divides and respects the order of compound dims, the cost is the sum of
//
//   - the cheapest fetch of each operand (a variant that exists is free; a cheap linear producer may be
//     placed anew), and
//   - the conversion to the seed if the result has one, else the debt of its partial and the gathers of dims
//     that a consumer needs whole.
//
// Ties go to the least local work, then to results made where their seed wants them (a sum of partials that
// is reduced afterwards is there twice, and no fusion takes it), then to the first operand's choice. At the
// step from forward to backward, the variants of a value that are larger than its canonical one are
// forgotten: they are gathered again. Values in the experts' layout are excepted.
//
// Decisions depend on the signature of a node and on the variants of its operands alone, so they are
// remembered across equal layers, functions and seeds (ShardMemo).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "moe/passes/shard/shard_graph.h"

namespace moe::passes {

// The walk is greedy; what it cannot see is settled by trying these, and keeping the cheapest whole plan.
struct ShardPolicy {
  // A partial that no seed needs scattered costs an all_reduce, not a reduce_scatter.
  bool debt_doubles = false;
  bool hints = true;  // place d(x) like x
  // How ops that route tokens (OpDef::Routes) may use the axes that both shard tokens and share the experts.
  enum Dispatcher : uint8_t { kFree, kAllToAll, kAllGather };
  Dispatcher dispatcher = kFree;
};
// What to try for a strategy's `dispatcher`: auto leaves the choice to the walk, node by node, and also tries
// both ways throughout. Without routing there is nothing to choose.
std::vector<ShardPolicy> ShardPolicies(bool routes, strategy::Dispatcher dispatcher);

struct Instruction {
  enum Kind : uint8_t { kOp, kClone, kConvert };
  Kind kind = kOp;
  int user = -1;  // clone, convert: the node it is made for (-1: the function itself)
  // op, clone
  int node = -1;
  FactorAssignment assignment;
  std::vector<PlacementId> operands, results;
  // convert
  int value = -1;
  PlacementId from = kNoPlacement, to = kNoPlacement;
};

struct ShardPlan {
  std::vector<Instruction> program;  // without what nothing uses
  std::vector<PlacementId> results;  // of the function
  double cost = 0;                   // bytes per rank, weighed by the links (conversion.h)
  double deferred = 0;               // what reducing its open accumulators will cost, per microbatch
  // Open accumulators: what this plan makes of them, and those where it wanted more partials than it could
  // have.
  std::map<std::string, PlacementId> decided, wanted;
};

class ShardMemo {
 public:
  struct Decision {
    bool found = false;
    FactorAssignment assignment;
    std::vector<PlacementId> operands, results;
  };
  absl::flat_hash_map<std::vector<int64_t>, Decision> decisions;
  int64_t hits = 0;
};

class ShardSearch {
 public:
  // `graph`, `planner` and `memo` must outlive the search. microbatches: how often a step runs this function
  // before an open accumulator is reduced.
  ShardSearch(const ShardGraph& graph, ConversionPlanner* planner, ShardPolicy policy, double microbatches,
              ShardMemo* memo);

  // Errors (InvalidArgument): a node that cannot be placed under the seeds, or a value that no conversion
  // brings where it is needed.
  absl::StatusOr<ShardPlan> Run();

 private:
  struct Candidate;
  // What a node may do with one axis: shard a factor (>= 0), nothing, or pass the partial of an operand.
  using Option = int16_t;
  static constexpr Option kNothing = -1, kPassAll = -2, kPassFirst = -3;  // kPassFirst - i: of operand i
  struct Preference {  // a placement that some value of the node has, for the order of axes on a factor
    const FactorTerm* term;
    PlacementId placement;
  };
  struct Fetch {
    double cost = 0;
    PlacementId source = kNoPlacement;  // none: by a clone
    FactorAssignment assignment;        // of the clone
    std::vector<PlacementId> operands;
  };

  absl::Status Place(int n);
  absl::Status PlaceAccumulate(int n);
  absl::Status PlaceSettled(int n);
  absl::Status PlaceWritten(int n);
  absl::Status PlaceSearched(int n);
  absl::Status Commit(int n, const FactorAssignment& assignment, const std::vector<PlacementId>& operands,
                      const std::vector<PlacementId>& results);
  ShardMemo::Decision Decide(const ShardNode& n);
  bool Try(const ShardNode& n, const std::vector<Option>& combination,
           const std::vector<Preference>& preferences, Candidate* candidate);
  absl::Status NoPlacement(const ShardNode& n) const;

  Fetch Best(int value, PlacementId to, int depth);
  absl::Status Get(int value, PlacementId to, int node, int depth = 0);
  absl::Status Reach(int value, PlacementId to, int node);  // Get, and make it canonical
  void ForgetInflated();
  void RemoveUnused(ShardPlan* plan) const;

  PlacementId Stationary(const ShardNode& n, int operand) const;
  PlacementId SeedOf(const ShardValue& v, PlacementId produced);
  double SeedCost(const ShardValue& v, PlacementId produced);
  // Under a dispatcher, whether the factor of experts may, or must, be sharded over the axis by this node.
  bool MayRoute(const ShardNode& n, AxisId axis) const;
  bool MustRoute(const ShardNode& n, AxisId axis) const;
  // axis -> factor, walking each dim's axes, major first, over its factors.
  void FactorAxes(const ShardNode& n, const FactorTerm& term, const Placement& p,
                  std::vector<std::pair<AxisId, FactorId>>* out) const;
  bool DimsOf(const ShardNode& n, const FactorTerm& term, const FactorAssignment& assignment,
              Placement* p) const;
  double Local(const ShardValue& v, PlacementId p) const { return v.bytes / planner_.Shards(p); }
  std::vector<int64_t> KeyOf(const ShardNode& n) const;
  void AddOperandKey(int value, int depth, std::vector<int64_t>* key) const;

  const ShardGraph& g_;
  ConversionPlanner& planner_;
  const Mesh& mesh_;
  const ShardPolicy policy_;
  const double microbatches_;
  ShardMemo& memo_;
  AxisList axes_;
  std::vector<std::vector<PlacementId>> variants_;  // per value, canonical first
  ShardPlan plan_;
};

}  // namespace moe::passes
