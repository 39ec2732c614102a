#include "moe/passes/fuse/fuse_update.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/ops/multi_adamw.h"

namespace moe::passes {
namespace {

// The cast of the new parameter that stands for a working copy, or null. Placed like it, so that the update
// can write it on the way.
Node* CopyOf(const Node& adamw) {
  for (const Use& u : adamw.uses(0)) {
    if (u.user->Is("math.cast") && u.user->type().placement == adamw.type().placement) return u.user;
  }
  return nullptr;
}

// May the two share a node: same scalars, same hyperparameters but the decay, same dtypes.
bool Together(const Node& a, const Node& b) {
  for (int i = 4; i < 9; ++i) {
    if (a.operand(i) != b.operand(i)) return false;
  }
  return a.Float("beta1") == b.Float("beta1") && a.Float("beta2") == b.Float("beta2") &&
         a.Float("eps") == b.Float("eps") && a.phase == b.phase && a.type().dtype == b.type().dtype &&
         a.operand(1).type().dtype == b.operand(1).type().dtype;
}

// Moves everything between the first of `group` and `last` that needs a result of the group behind `last`.
void MoveUsersBehind(Function& f, const std::vector<Node*>& group, Node* last) {
  std::set<const Node*> moved;
  const std::set<const Node*> members(group.begin(), group.end());
  const std::vector<Node*> nodes = f.Nodes();
  const auto begin = std::find(nodes.begin(), nodes.end(), group.front());
  const auto end = std::find(begin, nodes.end(), last);
  Node* before = end + 1 == nodes.end() ? nullptr : *(end + 1);
  for (auto it = begin; it != end; ++it) {
    if (members.count(*it)) continue;
    const bool depends = std::any_of((*it)->operands().begin(), (*it)->operands().end(), [&](const Value& v) {
      return members.count(v.node) || moved.count(v.node);
    });
    if (!depends) continue;
    moved.insert(*it);
    f.MoveBefore(*it, before);
  }
}

absl::Status Emit(Function& f, const std::vector<Node*>& group) {
  std::vector<int64_t> copies;  // numbers in the group
  std::vector<Node*> casts;
  for (size_t i = 0; i < group.size(); ++i) {
    Node* const cast = CopyOf(*group[i]);
    if (cast == nullptr || (!casts.empty() && cast->type().dtype != casts[0]->type().dtype)) continue;
    copies.push_back(static_cast<int64_t>(i));
    casts.push_back(cast);
  }
  Node* last = group.back();
  MoveUsersBehind(f, group, last);
  std::vector<Value> operands(last->operands().begin() + 4, last->operands().end());
  std::vector<Type> types;
  std::vector<std::string> decays;
  FactorAssignment assignment;
  bool placed = false;
  for (const Node* n : group) {
    for (int i = 0; i < 4; ++i) operands.push_back(n->operand(i));
    for (int r = 0; r < 3; ++r) types.push_back(n->type(r));
    decays.push_back(absl::StrFormat("%.17g", n->Float("weight_decay")));
    // Factors of the rule are the dims of the tensors in turn, as those of optim.adamw are its dims.
    const size_t end = assignment.size() + n->type().rank();
    assignment.insert(assignment.end(), n->assignment.begin(), n->assignment.end());
    assignment.resize(end);
    placed = placed || !n->assignment.empty();
  }
  Attributes attributes = {{"beta1", last->Float("beta1")},
                           {"beta2", last->Float("beta2")},
                           {"eps", last->Float("eps")},
                           {"weight_decay", decays}};
  if (!casts.empty()) {
    attributes["copies"] = copies;
    attributes["dtype"] = std::string(DTypeName(casts[0]->type().dtype));
    for (const Node* cast : casts) types.push_back(cast->type());
  }
  Builder b = Builder::Before(last);
  b.scope = "update";
  ASSIGN_OR_RETURN(Node * multi, b.CreateTyped("optim.multi_adamw", std::move(operands),
                                               std::move(attributes), std::move(types)));
  multi->provenance = {"fuse", absl::StrCat(group.size(), " tensors")};
  if (placed) multi->assignment = std::move(assignment);
  std::vector<std::string> names;
  for (size_t i = 0; i < group.size(); ++i) {
    for (int r = 0; r < 3; ++r) {
      names.push_back(group[i]->result_name(r));
      f.ReplaceAllUses(group[i]->result(r), multi->result(static_cast<int>(3 * i) + r));
    }
  }
  for (size_t i = 0; i < casts.size(); ++i) {
    names.push_back(casts[i]->result_name());
    f.ReplaceAllUses(casts[i]->result(), multi->result(static_cast<int>(3 * group.size() + i)));
    f.Erase(casts[i]);
  }
  for (Node* n : group) f.Erase(n);
  for (size_t r = 0; r < names.size(); ++r) multi->SetResultName(static_cast<int>(r), names[r]);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int> FuseAdamW(Function& f, const PassContext&) {
  int count = 0;
  std::vector<Node*> rest = f.NodesOf("optim.adamw");
  while (!rest.empty()) {
    std::vector<Node*> group, others;
    int dims = 0;
    for (Node* n : rest) {
      const int rank = n->type().rank();
      if (!group.empty() && (!Together(*group.front(), *n) || group.size() == kMaxMultiAdamWTensors ||
                             dims + rank > kMaxMultiAdamWDims)) {
        others.push_back(n);
        continue;
      }
      group.push_back(n);
      dims += rank;
    }
    if (group.size() > 1) {
      RETURN_IF_ERROR(Emit(f, group));
      ++count;
    }
    rest = std::move(others);
  }
  return count;
}

}  // namespace moe::passes
