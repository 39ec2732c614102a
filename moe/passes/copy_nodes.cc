#include "moe/passes/copy_nodes.h"

#include <glog/logging.h>

#include <string>
#include <utility>
#include <vector>

#include "moe/base/status.h"

namespace moe::passes {

Node* CopyNode(const Node& node, Function* into, ValueMap* map, Node* before) {
  std::vector<Value> operands;
  for (const Value& v : node.operands()) {
    auto it = map->find(v);
    CHECK(it != map->end()) << "copying " << node.op_name() << " before its operand %" << v.name();
    operands.push_back(it->second);
  }
  std::vector<Type> types;
  std::vector<std::string> names;
  for (int i = 0; i < node.num_results(); ++i) {
    types.push_back(node.type(i));
    names.push_back(node.result_name(i));
  }
  Node* copy = into->Insert(before, &node.op(), std::move(operands), std::move(types), node.attributes(),
                            std::move(names));
  copy->phase = node.phase;
  copy->queue = node.queue;
  copy->scope = node.scope;
  copy->provenance = node.provenance;
  copy->assignment = node.assignment;
  for (int i = 0; i < node.num_results(); ++i) {
    (*map)[Value{const_cast<Node*>(&node), i}] = copy->result(i);
  }
  return copy;
}

absl::StatusOr<Value> CopySlice(Value value, Function* into, ValueMap* map,
                                const std::function<absl::StatusOr<Value>(Node* arg)>& outside) {
  // An explicit stack: chains of nodes may be long.
  std::vector<std::pair<Node*, int>> stack = {{value.node, 0}};
  while (!stack.empty()) {
    auto& [node, next] = stack.back();
    if (map->count(node->result(0))) {
      stack.pop_back();
    } else if (node->Is("arg")) {
      ASSIGN_OR_RETURN((*map)[node->result()], outside(node));
      stack.pop_back();
    } else if (next < node->num_operands()) {
      Node* operand = node->operand(next++).node;
      stack.push_back({operand, 0});
    } else {
      CopyNode(*node, into, map);
      stack.pop_back();
    }
  }
  return map->at(value);
}

}  // namespace moe::passes
