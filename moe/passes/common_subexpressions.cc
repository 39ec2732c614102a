#include "moe/passes/common_subexpressions.h"

#include <cstring>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "moe/ir/registry.h"

namespace moe::passes {
namespace {

// Lengths before texts and counts before lists keep different nodes from the same key.
struct AttributeKey {
  std::string* key;
  void operator()(bool v) const { absl::StrAppend(key, "b", v ? 1 : 0); }
  void operator()(int64_t v) const { absl::StrAppend(key, "i", v); }
  void operator()(double v) const {
    uint64_t bits;  // -0.0 is not 0.0 here
    std::memcpy(&bits, &v, sizeof(bits));
    absl::StrAppend(key, "d", bits);
  }
  void operator()(const std::string& v) const { absl::StrAppend(key, "s", v.size(), ":", v); }
  void operator()(const std::vector<int64_t>& v) const {
    absl::StrAppend(key, "I", v.size());
    for (const int64_t x : v) absl::StrAppend(key, ":", x);
  }
  void operator()(const std::vector<std::string>& v) const {
    absl::StrAppend(key, "S", v.size());
    for (const std::string& x : v) absl::StrAppend(key, ":", x.size(), ":", x);
  }
  void operator()(const Axes& v) const {
    absl::StrAppend(key, "A", v.list.size());
    for (const AxisId x : v.list) absl::StrAppend(key, ":", static_cast<int>(x));
  }
};

std::string KeyOf(const Node& node, const Mesh& mesh) {
  std::string key =
      absl::StrCat(node.op_name(), " ", static_cast<int>(node.phase), " ", static_cast<int>(node.queue));
  for (const Value& v : node.operands()) absl::StrAppend(&key, " ", v.node->id(), ".", v.index);
  for (const auto& [name, value] : node.attributes()) {
    absl::StrAppend(&key, " ", name, "=");
    std::visit(AttributeKey{&key}, value);
  }
  for (int i = 0; i < node.num_results(); ++i) absl::StrAppend(&key, " ", TypeToString(node.type(i), mesh));
  for (const AxisList& axes : node.assignment) {
    absl::StrAppend(&key, " ", axes.size());
    for (const AxisId x : axes) absl::StrAppend(&key, ":", static_cast<int>(x));
  }
  return key;
}

// Does a user take over the storage of one of the node's results?
bool IsOverwritten(const Node& node) {
  for (int i = 0; i < node.num_results(); ++i) {
    for (const Use& use : node.uses(i)) {
      for (int result = 0; result < use.user->num_results(); ++result) {
        if (InPlaceOperand(*use.user, result) == use.operand) return true;
      }
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<bool> MergeCommonSubexpressions(Function& f, const PassContext&) {
  bool changed = false;
  absl::flat_hash_map<std::string, Node*> first;
  for (Node* node : f.Nodes()) {
    if (node->op().Has(kStateful) || node->op().Has(kRandom) || IsOverwritten(*node)) continue;
    const auto [it, fresh] = first.emplace(KeyOf(*node, f.module()->mesh()), node);
    if (fresh) continue;
    for (int i = 0; i < node->num_results(); ++i) f.ReplaceAllUses(node->result(i), it->second->result(i));
    f.Erase(node);
    changed = true;
  }
  return changed;
}

}  // namespace moe::passes
