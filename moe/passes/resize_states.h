// Gives states another first dim, and types to match to all that is computed from them: what the passes share
// that store tensors by other rows than the model has (stored_rows.h).
//
//   ResizeState(module, state, 8);                       // the state, and the arguments bound to it
//   RETURN_IF_ERROR(InferTypesAgain(*module.Find("step")));
//
// For graphs of one device, before `shard`. Nodes keep their dtypes and everything else.
#pragma once

#include "absl/status/status.h"
#include "moe/ir/graph.h"

namespace moe::passes {

void ResizeState(Module& module, State* state, int64_t rows);

// Infers the dims of every node's results again, in order. Error: a node whose operands no longer fit
// together.
absl::Status InferTypesAgain(Function& f);

}  // namespace moe::passes
