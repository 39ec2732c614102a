#include "moe/passes/checkpoint/recompute.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/cost/node_cost.h"
#include "moe/ir/registry.h"
#include "moe/ir/state.h"
#include "moe/passes/copy_nodes.h"
#include "moe/passes/schedule/split_phases.h"
#include "moe/strategy/checkpoint_policy.h"

namespace moe::passes {
namespace {

class Cloner {
 public:
  Cloner(Function* chunk, const std::set<Node*>& nodes) : f_(chunk), nodes_(nodes) {}

  RecomputeStats Run() {
    const Mesh& mesh = f_->module()->mesh();
    for (const auto& n : f_->body()) stats_.flops += cost::NodeFlops(*n, mesh);
    for (Node* n : f_->Nodes()) {
      if (n->phase != Phase::kBackward) continue;
      for (int i = 0; i < n->num_operands(); ++i) {
        const Value v = n->operand(i);
        if (nodes_.count(v.node)) n->SetOperand(i, Again(v, n));
      }
    }
    return stats_;
  }

 private:
  // The value computed again, before `user` at the latest.
  Value Again(Value v, Node* user) {
    std::vector<std::pair<Node*, int>> stack = {{v.node, 0}};
    while (!stack.empty()) {
      Node* n = stack.back().first;
      if (again_.count(n->result())) {
        stack.pop_back();
        continue;
      }
      if (n->Is("arg") || !nodes_.count(n)) {
        for (int r = 0; r < n->num_results(); ++r) again_[n->result(r)] = n->result(r);
        continue;
      }
      if (stack.back().second < n->num_operands()) {
        stack.push_back({n->operand(stack.back().second++).node, 0});
        continue;
      }
      Node* clone = CopyNode(*n, f_, &again_, user);
      clone->phase = Phase::kBackward;
      clone->provenance = {"checkpoint", absl::StrCat("recomputes %", n->result_name())};
      stats_.extra_flops += cost::NodeFlops(*clone, f_->module()->mesh());
      ++stats_.clones;
    }
    return again_.at(v);
  }

  Function* f_;
  const std::set<Node*>& nodes_;
  ValueMap again_;  // forward value -> what the backward reads instead
  RecomputeStats stats_;
};

}  // namespace

bool IsStable(const Node& arg, const Module& module) {
  if (arg.binding.kind != Binding::kState) return true;
  const State* s = module.FindState(arg.binding.name);
  if (s == nullptr) return false;
  const std::string kind = AttrString(s->attributes, "kind");
  return kind == "parameter" || kind == "working_copy" || kind == "expert_map";
}

std::set<const Node*> BoundToTheForward(const Function& chunk) {
  std::set<const Node*> bound;
  for (const auto& n : chunk.body()) {
    if (n->phase != Phase::kForward) continue;
    bool free = strategy::WhyNeverRecomputed(n->op()).empty();
    for (const Value& v : n->operands()) {
      free = free && (v.node->Is("arg") ? IsStable(*v.node, *chunk.module()) : !v.node->op().Has(kStateful));
    }
    if (!free) bound.insert(n.get());
  }
  return bound;
}

int64_t ResidualBytes(const Function& chunk, double overload) {
  int64_t bytes = 0;
  for (const Value& v : ResidualsOf(chunk))
    bytes += StorageOf(v.type(), chunk.module()->mesh(), overload).bytes;
  return bytes;
}

RecomputeStats Recompute(Function* chunk, const std::set<Node*>& nodes) { return Cloner(chunk, nodes).Run(); }

}  // namespace moe::passes
