// Copying nodes between functions: what passes that cut functions apart, or repeat parts of them, share.
//
//   ValueMap map;                       // values of the source function -> values of the destination
//   map[arg->result()] = to->AddArg("x", arg->type());
//   for (Node* n : from->Nodes()) CopyNode(*n, to, &map);
//
// Everything of a node is kept: types, attributes, names (made unique where taken), phase, queue, scope,
// provenance, assignment. Not thread-safe, like the graph itself.
#pragma once

#include <functional>
#include <map>

#include "absl/status/statusor.h"
#include "moe/ir/graph.h"

namespace moe::passes {

using ValueMap = std::map<Value, Value>;  // keys: values of one function

// Copies `node` before `before` (null: to the end); all operands must be in `map`, where its results are
// entered.
Node* CopyNode(const Node& node, Function* into, ValueMap* map, Node* before = nullptr);

// Copies `value` and, in topological order, whatever it needs that `map` lacks. `outside` gives values for
// arguments that the map lacks (or an error).
absl::StatusOr<Value> CopySlice(Value value, Function* into, ValueMap* map,
                                const std::function<absl::StatusOr<Value>(Node* arg)>& outside);

}  // namespace moe::passes
