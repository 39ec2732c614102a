// What a node costs on one rank: floating-point operations, bytes touched, bytes sent, and seconds by a
// roofline.
//
// Extents are local: the factor extents of the node's rule, divided by the axes its assignment gives them. A
// graph that is not placed yet (empty assignments) costs what one device would pay for the whole, which is
// what stage balancing compares.
//
//   const double seconds = NodeSeconds(*node, module.mesh(), target);
//
// Pure functions of the node; safe to call from any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "moe/cost/target.h"
#include "moe/ir/conversion_steps.h"
#include "moe/ir/graph.h"

namespace moe::cost {

// Local extents of the factors of the node's rule. Error: a rule that does not fit the operands.
absl::StatusOr<std::vector<double>> LocalFactorExtents(const Node& n, const Mesh& mesh);

// Floating-point operations of one rank: what the op says of these extents (OpDef::Flops), else so many for
// each element of the largest operand or result; a dispatch, which only copies, has as many as it has slots
// times hidden. 0 for collectives and for nodes whose rule does not resolve.
double NodeFlops(const Node& n, const Mesh& mesh);

// Bytes that one rank reads and writes: all operands and results (expected rows where ragged), of a table
// that is read by index as much as the result has.
double NodeBytes(const Node& n, const Mesh& mesh);

// A comm.* node: bytes that a rank sends (ring algorithms: all_reduce 2 (n-1)/n of the value, reduce_scatter
// and all_gather (n-1)/n of the larger side, all_to_all (n-1)/n), and the number of collectives launched.
// Where the mesh says which axes are inside a node (alias "node"): how many of the bytes leave it. Ranks of a
// node are neighbours in a ring, so of a ring that crosses nodes every rank's share leaves by the last of
// them. A comm.stage_reduce is an all_reduce between stages.
struct CommCost {
  double bytes = 0, across = 0;
  int launches = 0;
};
CommCost CommunicationCost(const Node& n, const Mesh& mesh);

// One step of a conversion on a value of `bytes` on one rank, and what the value has after it.
struct StepCost {
  CommCost sent;
  double bytes_after = 0;
  double seconds = 0;
};
// Time: messages one after the other, as many as a ring has hops or an all_to_all peers, then bytes over the
// link; a ring with a hop between nodes is as slow as that hop, an all_to_all sends to each peer over the
// link that leads there.
StepCost CostOfStep(const ConversionStep& step, double bytes, const Mesh& mesh, const Target& target);
// Of several, one after the other.
StepCost CostOfSteps(absl::Span<const ConversionStep> steps, double bytes, const Mesh& mesh,
                     const Target& target);
// A collective that leaves nodes in two levels: first what makes the part small that leaves them. A
// reduce_scatter and an all_to_all go inside nodes first, an all_gather across them first; an all_reduce is a
// reduce_scatter inside (of dim `dim`, which the ranks of a node must divide), an all_reduce across and an
// all_gather inside. Empty for other kinds, and for what is all inside nodes or all across.
std::vector<ConversionStep> InTwoLevels(const ConversionStep& step, int dim, const Mesh& mesh);
// Splits axes into those inside a node and those across nodes, in their order. All are inside where there is
// one node.
struct AxisLevels {
  AxisList inside, across;
};
AxisLevels LevelsOf(absl::Span<const AxisId> axes, const Mesh& mesh);

// The link between ranks that differ in these axes: that between nodes where one of the axes crosses them.
// Pipeline stages, LinkOf(mesh.Alias("pp"), ...), are on different nodes wherever there are several: the mesh
// does not say which stages share one.
struct Link {
  double bytes_per_second = 0, latency_seconds = 0;
  double Seconds(double messages, double bytes) const {  // one after the other
    return messages * latency_seconds + bytes / bytes_per_second;
  }
};
Link LinkOf(absl::Span<const AxisId> axes, const Mesh& mesh, const Target& target);

// Roofline: max(flops / peak, bytes / memory bandwidth) for compute; CostOfStep for collectives.
double NodeSeconds(const Node& n, const Mesh& mesh, const Target& target);

}  // namespace moe::cost
