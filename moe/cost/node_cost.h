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
#include "moe/cost/target.h"
#include "moe/ir/graph.h"

namespace moe {

// Local extents of the factors of the node's rule. Error: a rule that does not fit the operands.
absl::StatusOr<std::vector<double>> LocalFactorExtents(const Node& n, const Mesh& mesh);

// Floating-point operations of one rank; 0 for collectives and for nodes whose rule does not resolve.
double NodeFlops(const Node& n, const Mesh& mesh);

// Bytes of all operands and results of one rank (expected rows where ragged).
double NodeBytes(const Node& n, const Mesh& mesh);

// A comm.* node: bytes that a rank sends (ring algorithms: all_reduce 2 (n-1)/n of the value, reduce_scatter
// and all_gather (n-1)/n of the larger side, all_to_all (n-1)/n), and the number of collectives launched.
struct CommCost {
  double bytes = 0;
  int launches = 0;
};
CommCost CommunicationCost(const Node& n, const Mesh& mesh);

// Roofline: max(flops / peak, bytes / memory bandwidth) for compute; latency per launch plus bytes over the
// link for collectives.
double NodeSeconds(const Node& n, const Mesh& mesh, const Target& target);

}  // namespace moe
