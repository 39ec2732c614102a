// Seeds: the placements that a strategy fixes before anything is searched.
//
//   Seeds seeds(module.mesh(), strategy, orders);
//   Placement p = seeds.Compute(*module.FindState("layers.0.attn.wq"));   // [-, tp, -]
//
// A parameter has three placements: where it computes (by its role), where its optimizer state lives (from
// ZeRO-1 on the data axes are appended, minor, to the first dim that they divide: dp and cp for dense
// parameters, edp for experts, or the inner part of them that zero_dp and expert_zero_dp name), and where it
// is stored (from ZeRO-3 on as the optimizer state). The residual stream is [dp, cp(.tp), -], token inputs
// are [dp, cp]. Everything else follows from the sharding rules.
//
// A state or argument whose type is placed in the text already keeps that placement: a module written by hand
// needs no strategy.
//
// The order of several axes on one dim is free, and matters: tokens -> experts is one all_to_all only if the
// axes that move are minor in the batch dim, and where tokens are replicated over a part of ep that part
// should be major in the expert dim. AxisOrders are what the shard pass tries.
//
// Plain data that refers to nothing; safe to copy.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "moe/ir/graph.h"
#include "moe/strategy/strategy.h"

namespace moe::passes {

struct AxisOrders {
  bool reverse_ep = false;  // the fold's order of the expert axes, reversed
  bool regroup_dp = false;  // dp with the axes of edp first, then those of etp, then those of ep
  std::string ToString() const;
};
// Orders worth trying on this mesh, the fold's own first.
std::vector<AxisOrders> CandidateOrders(const Mesh& mesh, const strategy::Strategy& strategy);

class Seeds {
 public:
  Seeds(const Mesh& mesh, const strategy::Strategy& strategy, AxisOrders orders);

  Placement Compute(const State& parameter) const;
  Placement Optimizer(const State& parameter) const;
  Placement Storage(const State& parameter) const;
  // Whether the gradient is scattered every microbatch (ZeRO-2/3) instead of once a step.
  bool ScattersGradient(const State& parameter) const;
  // Whether several copies of the optimizer state are kept (hybrid sharding): a scattered gradient stays a
  // partial sum across them until the step ends.
  bool KeepsCopies(const State& parameter) const;

  // Where the sum of the replicas' gradients is made, given where the gradients by expert slots are: the axes
  // of the slots on another dim that they divide, so that rows are exchanged and not summed between ranks.
  Placement ReplicaSum(Placement gradient, const Type& type) const;

  Placement ResidualStream(const Type& type) const;
  Placement Batch(const Type& type) const;

  // The axes of ep over which tokens are sharded, as a set of bits.
  uint64_t RoutedAxes() const;

  double microbatches() const { return static_cast<double>(strategy_.microbatches); }

  // Every extent that the seeds shard is divisible by its axes. Error (InvalidArgument): all violations, with
  // the legal degrees.
  absl::Status Check(const Module& module) const;

 private:
  int ZeroStage(const State& parameter) const;
  AxisList DataAxes(const State& parameter) const;  // that ZeRO shards over, major first

  Mesh mesh_;
  strategy::Strategy strategy_;
  AxisList tp_, cp_, dp_, etp_, ep_, edp_, kvh_, vocab_, sequence_;
};

// Whether a placement was written down: it names at least one axis.
bool IsPlaced(const Type& type);

}  // namespace moe::passes
