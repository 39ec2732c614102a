// shard: gives every node a factor assignment and every value and state a placement, at least cost.
//
//   PassContext context;
//   context.strategy = *strategy::ParseStrategy("dp=2 tp=2 ep=2 sp vp zero=1");
//   RETURN_IF_ERROR(Shard(program, context).status());
//
// Seeds (seeds.h) fix what the strategy says: parameters, optimizer state, inputs, the residual stream,
// reports. Everything else is placed by the sharding rules, node by node, where it costs the fewest bytes
// (shard_search.h). Each function is planned under a few policies and, where the mesh leaves it open, axis
// orders; the cheapest whole plan is written. Mismatches become explicit comm.convert nodes, which
// insert-collectives lowers.
//
// Under ZeRO-0 and 1, gradient accumulators (and reports under all) keep the partial that the backward
// leaves: nothing is reduced per microbatch, and once a step by @update (@report).
//
// Arguments, states and nodes that are placed in the text keep their placements, so that a module written by
// hand can be completed: a node with an assignment stays as it is, a placed result type is a seed. A module
// without a mesh gets the one that the strategy folds to.
//
// Errors (InvalidArgument): extents that the strategy cannot divide (all at once, with the legal degrees), a
// node that has no legal placement, an illegal conversion.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

absl::StatusOr<bool> Shard(Program& program, const PassContext& context);

}  // namespace moe::passes
