// Checks a module: names, arity, attributes, dominance (operands before users), types against inference,
// placements against the mesh and against the sharding rule and factor assignment, phases in order, state and
// bindings that exist. All problems at once, up to a limit, one line each.
//
//   RETURN_IF_ERROR(Verify(module));   // "2 problems in module @m:\n  @f: %y = math.add: ..."
//
// It runs after every load and after every pass that changed something. Errors are InvalidArgument. Nothing
// is changed; several threads may verify one module.
#pragma once

#include "absl/status/status.h"
#include "moe/ir/graph.h"

namespace moe {

struct VerifyOptions {
  // Before a pass that places them, nodes without a placement may stand among placed values; what they get
  // and give is then only of the right shape.
  bool unplaced_nodes = false;
};
absl::Status Verify(const Module& module, const VerifyOptions& options = {});
absl::Status Verify(const Function& function);

// What can be said about one node without its surroundings: arity, attributes (known, of the right kind,
// complete), number of results, dtypes and global dims as inferred, what the op itself demands. The operands
// must be nodes.
absl::Status VerifyNode(const Node& node);
// One type on its mesh: extents in range and divisible by their axes, no axis twice, none called "pp", ragged
// fields.
absl::Status VerifyType(const Type& type, const Mesh& mesh);
// Names, sizes and number of ranks within bounds; "pp" first; aliases that name axes.
absl::Status VerifyMesh(const Mesh& mesh);

}  // namespace moe
