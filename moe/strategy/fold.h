// FoldMesh: the mesh that follows from a strategy. Attention factors the ranks of a stage as dp x cp x tp,
// experts as edp x ep x etp, both over common atomic axes.
//
//   ASSIGN_OR_RETURN(Mesh mesh, FoldMesh(*ParseStrategy("pp=2 dp=2 tp=2 ep=2"), /*kv_heads=*/4));
//   mesh.Alias("ep");   // the axes that experts are spread over
//
// Pure functions.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "moe/ir/types.h"
#include "moe/strategy/strategy.h"

namespace moe::strategy {

// Atomic axes by folding: cut points {1, tp, tp*cp, tp*cp*dp} and {1, etp, etp*ep, etp*ep*edp}, and
// tp/gcd(tp, kv_heads), must form a divisibility chain. kv_heads = 0: no attention. Error: which cut points
// clash; what would fit depends on the model, and nearest.h finds it. Axes get names of one letter, minor
// first ('a' is the innermost); "pp" is prepended when pp > 1. Aliases: dp cp tp ep etp edp kvh; "shard" and
// "expert_shard", the axes that zero_dp and expert_zero_dp mean, where they are set; "node", the axes inside
// a node, where there are several nodes: an axis that the boundary of a node cuts is split there if the chain
// allows it.
// `alongside`: strategies whose plans share state with this one; the axes are then fine enough for all of
// them, so that a placement means the same in every plan. Their worlds and stages must be those of `s`.
absl::StatusOr<Mesh> FoldMesh(const Strategy& s, int64_t kv_heads, absl::Span<const Strategy> alongside = {});
// What keeps the degrees from folding; "" if they fold.
std::string FoldProblem(const Strategy& s, int64_t kv_heads);

}  // namespace moe::strategy
