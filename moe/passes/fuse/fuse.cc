#include "moe/passes/fuse/fuse.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/ops/fused_program.h"
#include "moe/ir/ops/multi_adamw.h"
#include "moe/passes/fuse/fuse_update.h"

namespace moe::passes {
namespace {

Attributes TagOf(const Node& n) {
  Attributes attributes;
  if (n.Has("tag")) attributes["tag"] = n.String("tag");
  return attributes;
}

bool RunTogether(const Node& a, const Node& b) { return a.phase == b.phase && a.queue == b.queue; }

// Axes of a factor; none for a node that is not placed.
AxisList AxesOf(const Node& n, absl::string_view factor) {
  if (n.assignment.empty()) return {};
  const absl::StatusOr<const ShardingRule*> rule = n.Rule();
  const int f = rule.ok() ? (*rule)->Find(factor) : -1;
  return f < 0 ? AxisList{} : n.assignment[f];
}

// Gives the new node its assignment by factor names, if the nodes that it replaces are placed.
absl::Status Assign(Node* n, bool placed, const std::map<std::string, AxisList>& axes) {
  if (!placed) return absl::OkStatus();
  ASSIGN_OR_RETURN(const ShardingRule* rule, n->Rule());
  n->assignment.resize(rule->num_factors());
  for (int f = 0; f < rule->num_factors(); ++f) {
    const auto it = axes.find(rule->factors[f]);
    if (it != axes.end()) n->assignment[f] = it->second;
  }
  return absl::OkStatus();
}

// Every user of a value but `except` stands after `place`.
bool UsedOnlyAfter(const Node* definition, int result, const Node* place, const Node* except) {
  const Function& f = *place->function();
  return std::all_of(definition->uses(result).begin(), definition->uses(result).end(), [&](const Use& use) {
    return use.user == except || use.user == place || f.ComesBefore(place, use.user);
  });
}

// Replaces uses of the old values by the results of `n` and hands their names on; then erases the old nodes,
// last first.
void TakeOver(Node* n, const std::vector<std::pair<Value, int>>& values, const std::vector<Node*>& old) {
  Function* f = n->function();
  std::vector<std::pair<int, std::string>> names;
  for (const auto& [value, result] : values) {
    names.emplace_back(result, value.name());
    f->ReplaceAllUses(value, n->result(result));
  }
  for (Node* node : old) f->Erase(node);
  for (auto& [result, name] : names) n->SetResultName(result, name);
}

absl::StatusOr<int> FuseAddRmsNorm(Function& f, const PassContext&) {
  int count = 0;
  for (Node* norm : f.NodesOf("nn.rms_norm")) {
    const Value x = norm->operand(0);
    Node* add = x.node;
    if (!add->Is("math.add") || !RunTogether(*add, *norm)) continue;
    if (add->operand(0).type().rank() != 3 || add->operand(1).type().rank() != 3) continue;
    if (!AxesOf(*add, "a2").empty() || AxesOf(*add, "a0") != AxesOf(*norm, "b") ||
        AxesOf(*add, "a1") != AxesOf(*norm, "s")) {
      continue;
    }
    if (!x.type().placement.partial.empty() || !UsedOnlyAfter(add, 0, norm, norm)) continue;
    Attributes attributes = TagOf(*add);
    attributes["eps"] = norm->Float("eps");
    Builder b = Builder::Before(norm);
    ASSIGN_OR_RETURN(Node * n,
                     b.CreateTyped("nn.add_rms_norm", {add->operand(0), add->operand(1), norm->operand(1)},
                                   attributes, {add->type(), norm->type()}));
    n->provenance = {"fuse", absl::StrCat("%", add->result_name(), " and %", norm->result_name())};
    RETURN_IF_ERROR(
        Assign(n, !norm->assignment.empty(), {{"b", AxesOf(*norm, "b")}, {"s", AxesOf(*norm, "s")}}));
    TakeOver(n, {{x, 0}, {norm->result(), 1}}, {norm, add});
    ++count;
  }
  return count;
}

// The count of a top-k's choices that is placed like it; null if there is none (they may have been gathered
// first).
Node* CountAlike(const Node& top, int64_t experts) {
  for (const Use& use : top.uses(1)) {
    Node* n = use.user;
    if (!n->Is("moe.count") || n->BoolOr("per_sequence", false) || n->Int("experts") != experts) continue;
    bool alike = RunTogether(*n, top) && AxesOf(*n, "e").empty() && AxesOf(*n, "k").empty();
    for (const char* factor : {"b", "c", "t"}) alike = alike && AxesOf(*n, factor) == AxesOf(top, factor);
    if (alike) return n;
  }
  return nullptr;
}

absl::StatusOr<int> FuseRouter(Function& f, const PassContext& context) {
  int fused = 0;
  for (Node* top : f.NodesOf("moe.top_k")) {
    Node* softmax = top->operand(0).node;
    if (!softmax->Is("nn.softmax") || !RunTogether(*softmax, *top)) continue;
    std::map<std::string, AxisList> axes;
    bool alike = true;
    for (const char* factor : {"b", "c", "t"}) {
      axes[factor] = AxesOf(*top, factor);
      alike = alike && AxesOf(*softmax, factor) == axes[factor];
    }
    if (!alike || !UsedOnlyAfter(softmax, 0, top, top)) continue;
    Node* count = context.target.CanFuse("moe.router") ? CountAlike(*top, softmax->type().dims[3]) : nullptr;
    if (count == nullptr && !context.target.CanFuse("moe.softmax_top_k")) continue;
    std::vector<Type> types = {softmax->type(), top->type(0), top->type(1)};
    std::vector<std::pair<Value, int>> values = {
        {softmax->result(), 0}, {top->result(0), 1}, {top->result(1), 2}};
    std::vector<Node*> old = {top, softmax};
    std::string what = absl::StrCat("%", softmax->result_name(), " and %", top->result_name(1));
    if (count != nullptr) {
      types.push_back(count->type());
      values.emplace_back(count->result(), 3);
      old.insert(old.begin(), count);
      absl::StrAppend(&what, " and %", count->result_name());
    }
    Builder b = Builder::Before(top);
    ASSIGN_OR_RETURN(Node * n, b.CreateTyped(count != nullptr ? "moe.router" : "moe.softmax_top_k",
                                             {softmax->operand(0), top->operand(1)}, {{"k", top->Int("k")}},
                                             std::move(types)));
    if (top->Has("order")) n->Set("order", top->Ints("order"));
    n->provenance = {"fuse", what};
    RETURN_IF_ERROR(Assign(n, !top->assignment.empty(), axes));
    TakeOver(n, values, old);
    ++fused;
  }
  return fused;
}

// ---- Chains

constexpr size_t kMaxFusedOperands = 8;

bool FusedOpOf(const Node& n, FusedOp* op) {
  absl::string_view name = n.op_name();
  return absl::ConsumePrefix(&name, "math.") && ParseFusedOp(name, op);
}

// A node that a chain may have: one of the elementwise ops, on floats, nothing partial, operand 0 of the full
// shape.
bool MayChain(const Node& n) {
  FusedOp op;
  if (!FusedOpOf(n, &op) || !IsFloat(n.type().dtype) || !n.type().placement.partial.empty()) return false;
  return std::all_of(n.operands().begin(), n.operands().end(), [&](const Value& v) {
    const Type& t = v.type();
    return t.placement.partial.empty() && t.dtype == n.type().dtype && (t.rank() == 0 || t == n.type());
  });
}

// The tree of single-use nodes that ends in `root`.
class Chain {
 public:
  explicit Chain(Node* root) : root_(root) { Take(root); }

  const std::vector<Node*>& nodes() const { return nodes_; }  // operands before users

  absl::Status Emit() {
    // The first operand has the full shape: the rule follows it.
    std::stable_partition(inputs_.begin(), inputs_.end(),
                          [&](const Value& v) { return v.type().rank() == root_->type().rank(); });
    FusedProgram program;
    std::map<Value, int> at;
    for (size_t i = 0; i < inputs_.size(); ++i) at[inputs_[i]] = static_cast<int>(i);
    std::vector<std::string> names;
    for (Node* n : nodes_) {
      FusedInstruction in;
      FusedOpOf(*n, &in.op);
      in.a = at.at(n->operand(0));
      if (NumFusedOperands(in.op) == 2) in.b = at.at(n->operand(1));
      if (in.op == FusedOp::kScale) in.constant = n->Float("by");
      if (in.op == FusedOp::kAtLeast) in.constant = n->Float("value");
      at[n->result()] = -1 - static_cast<int>(program.size());
      program.push_back(in);
      names.push_back("%" + n->result_name());
    }
    Attributes attributes = TagOf(*root_);
    attributes["program"] = FusedProgramText(program);
    Builder b = Builder::Before(root_);
    ASSIGN_OR_RETURN(Node * n, b.CreateTyped("math.fused", inputs_, attributes, {root_->type()}));
    n->provenance = {"fuse", absl::StrJoin(names, ", ")};
    n->assignment = root_->assignment;
    TakeOver(n, {{root_->result(), 0}}, std::vector<Node*>(nodes_.rbegin(), nodes_.rend()));
    return absl::OkStatus();
  }

 private:
  // Takes n and what it may of its operands.
  void Take(Node* n) {
    for (const Value& v : n->operands()) {
      const bool room =
          nodes_.size() + pending_ + 1 < kMaxFusedInstructions && inputs_.size() + 2 < kMaxFusedOperands;
      if (room && v.HasOneUse() && v.type() == root_->type() && RunTogether(*v.node, *root_) &&
          MayChain(*v.node)) {
        ++pending_;
        Take(v.node);
        --pending_;
      } else if (std::find(inputs_.begin(), inputs_.end(), v) == inputs_.end()) {
        inputs_.push_back(v);
      }
    }
    nodes_.push_back(n);
  }

  Node* root_;
  std::vector<Node*> nodes_;
  std::vector<Value> inputs_;
  int pending_ = 0;  // nodes on the way from the root that are not in nodes_ yet
};

absl::StatusOr<int> FuseElementwise(Function& f, const PassContext&) {
  int count = 0;
  std::set<const Node*> gone;
  const std::vector<Node*> nodes = f.Nodes();
  for (auto it = nodes.rbegin(); it != nodes.rend(); ++it) {
    if (gone.count(*it) || !MayChain(**it)) continue;
    Chain chain(*it);
    if (chain.nodes().size() < 2) continue;
    gone.insert(chain.nodes().begin(), chain.nodes().end());
    RETURN_IF_ERROR(chain.Emit());
    ++count;
  }
  return count;
}

// In the order in which they run: what a specific fusion wants, no chain takes.
struct Fusion {
  absl::string_view name;
  absl::string_view op, or_op;  // what it makes
  absl::StatusOr<int> (*run)(Function& f, const PassContext& context);
};
constexpr Fusion kFusions[] = {
    {"add-rms-norm", "nn.add_rms_norm", "", FuseAddRmsNorm},
    {"router", "moe.router", "moe.softmax_top_k", FuseRouter},
    {"elementwise", "math.fused", "", FuseElementwise},
    {"adamw", "optim.multi_adamw", "", FuseAdamW},
};

absl::StatusOr<std::set<std::string>> Names(const PassContext& context, absl::string_view option) {
  std::set<std::string> names;
  for (absl::string_view name :
       absl::StrSplit(context.OptionOr(option, ""), absl::ByAnyChar("+ "), absl::SkipEmpty())) {
    const bool known = std::any_of(std::begin(kFusions), std::end(kFusions),
                                   [&](const Fusion& x) { return x.name == name; });
    if (!known) {
      return absl::InvalidArgumentError(absl::StrCat(
          "fuse: ", option, " names '", name, "'; fusions are ",
          absl::StrJoin(kFusions, ", ",
                        [](std::string* out, const Fusion& x) { absl::StrAppend(out, x.name); })));
    }
    names.insert(std::string(name));
  }
  return names;
}

}  // namespace

absl::StatusOr<bool> Fuse(Program& program, const PassContext& context) {
  ASSIGN_OR_RETURN(const std::set<std::string> only, Names(context, "only"));
  ASSIGN_OR_RETURN(const std::set<std::string> skip, Names(context, "skip"));
  std::vector<std::string> notes;
  for (const Fusion& fusion : kFusions) {
    const std::string name(fusion.name);
    const bool kernel = context.target.CanFuse(std::string(fusion.op)) ||
                        (!fusion.or_op.empty() && context.target.CanFuse(std::string(fusion.or_op)));
    if (skip.count(name) || (!only.empty() && !only.count(name)) || !kernel) continue;
    int count = 0;
    for (const std::unique_ptr<Function>& f : program.module->functions()) {
      ASSIGN_OR_RETURN(const int n, fusion.run(*f, context));
      count += n;
    }
    if (count > 0) notes.push_back(absl::StrCat(name, " ", count));
  }
  if (notes.empty()) return false;
  context.Note(absl::StrJoin(notes, ", "));
  return true;
}

}  // namespace moe::passes
