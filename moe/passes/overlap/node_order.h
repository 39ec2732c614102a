// What keeps the nodes of a function in order, and how to give them another one: shared by the passes that
// move nodes.
//
//   const NodeOrder order(f);
//   order.before(3);                  // indices of nodes that come before the fourth
//   Rearrange(f, {order.node(1), order.node(0), order.node(2)});
//
// A node comes after those whose results it reads. Besides, a state lies in one place: the node that gives it
// its new value comes after all nodes that read the old one. Plain data; valid until the function changes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "moe/ir/graph.h"

namespace moe::passes {

class NodeOrder {
 public:
  explicit NodeOrder(const Function& f);

  int size() const { return static_cast<int>(nodes_.size()); }
  Node* node(int i) const { return nodes_[i]; }
  int index(const Node* n) const { return index_.at(n); }
  bool Has(const Node* n) const { return index_.count(n) > 0; }       // false for arguments and the return
  const std::vector<int>& before(int i) const { return before_[i]; }  // sorted, each once
  const std::vector<int>& after(int i) const { return after_[i]; }

 private:
  std::vector<Node*> nodes_;
  std::map<const Node*, int> index_;
  std::vector<std::vector<int>> before_, after_;
};

// Puts the body of `f` in this order, which holds each of its nodes once, operands before users.
void Rearrange(Function& f, absl::Span<Node* const> order);

}  // namespace moe::passes
