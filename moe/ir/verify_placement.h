// The part of the verifier that follows placements through one node: a node's operand and result types must
// be what its sharding rule gives for its factor assignment, and a conversion (comm.*) must be one that its
// op performs.
//
//   %y = math.einsum(%x, %w) {eq = "b k, k n -> b n"} place<k=tp> : f32[8, 16]
//   -> "result %y is [-, -], the placement of its factors gives [-, -] partial(tp)"
//
// Called by Verify for nodes whose operands and types are sound in themselves. No state; any thread.
#pragma once

#include "absl/status/status.h"
#include "moe/ir/graph.h"
#include "moe/ir/registry.h"

namespace moe {

absl::Status VerifyPlacement(const Node& node, const Mesh& mesh);

// The factor assignment that the types of operands and results show, where a text leaves it out: each factor
// takes the axes of the first dim it stands in that is sharded; in a product the major factors take theirs
// first. Empty if nothing is sharded, or if operands are and no result is: such a node is yet to be placed,
// because what sharded operands give is sharded or partial itself. Whether the types agree with it is for
// VerifyPlacement to say.
absl::StatusOr<FactorAssignment> AssignmentFromTypes(const Node& node, const Mesh& mesh);
// No assignment and no placed result: what a pass that places nodes has still to do.
bool IsUnplaced(const Node& node);

// comm.* ops that take a value from one placement to another; their result types are given by their creator.
bool IsConversion(const OpDef& op);

}  // namespace moe
