#include "moe/passes/overlap/node_order.h"

#include <algorithm>
#include <string>

#include "moe/ir/registry.h"
#include "moe/ir/state.h"

namespace moe::passes {

NodeOrder::NodeOrder(const Function& f) {
  for (const auto& n : f.body()) {
    index_[n.get()] = static_cast<int>(nodes_.size());
    nodes_.push_back(n.get());
  }
  before_.resize(nodes_.size());
  after_.resize(nodes_.size());
  std::map<std::string, Node*> written_by;  // state -> the node that gives its new value
  for (int r = 0; r < f.num_results(); ++r) {
    if (f.result_binding(r).kind != Binding::kState || f.result(r).node->Is("arg")) continue;
    written_by[f.result_binding(r).name] = f.result(r).node;
  }
  const auto readers_before = [&](Value v, int i) {
    for (const Use& u : v.node->uses(v.index)) {
      const auto reader = index_.find(u.user);
      if (reader != index_.end() && reader->second < i) before_[i].push_back(reader->second);
    }
  };
  for (int i = 0; i < size(); ++i) {
    Node* n = nodes_[i];
    for (const Value& v : n->operands()) {
      const auto it = index_.find(v.node);
      if (it != index_.end()) before_[i].push_back(it->second);
    }
    for (int result = 0; result < n->num_results(); ++result) {
      const int operand = InPlaceOperand(*n, result);
      if (operand >= 0) readers_before(n->operand(operand), i);
    }
  }
  for (const Node* a : f.args()) {
    if (a->binding.kind != Binding::kState) continue;
    const auto writer = written_by.find(a->binding.name);
    if (writer != written_by.end()) readers_before(Value{const_cast<Node*>(a), 0}, index_.at(writer->second));
  }
  for (int i = 0; i < size(); ++i) {
    std::vector<int>& b = before_[i];
    std::sort(b.begin(), b.end());
    b.erase(std::unique(b.begin(), b.end()), b.end());
    for (const int j : b) after_[j].push_back(i);
  }
}

void Rearrange(Function& f, absl::Span<Node* const> order) {
  for (Node* n : order) f.MoveBefore(n, nullptr);
}

}  // namespace moe::passes
