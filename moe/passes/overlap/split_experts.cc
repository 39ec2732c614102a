#include "moe/passes/overlap/split_experts.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/registry.h"

namespace moe::passes {
namespace {

enum class Crossing { kNone, kArrives, kLeaves };

// Whether an exchange brings tokens to where the experts (dim 0) are sharded, or takes them back.
absl::StatusOr<Crossing> CrossingOf(const Node& n, const Mesh& mesh) {
  if (n.queue != Queue::kComm || !ConvertsOne(n) || n.type().rank() < 3) return Crossing::kNone;
  ASSIGN_OR_RETURN(const std::vector<ConversionPart> parts, ConversionParts(n, mesh));
  Crossing crossing = Crossing::kNone;
  for (const ConversionStep& step : parts[0].steps) {
    for (const Move& m : step.moves) {
      if (m.from != 0 && m.to != 0) continue;
      if (step.kind != StepKind::kAllToAll) return Crossing::kNone;
      crossing = m.to == 0 ? Crossing::kArrives : Crossing::kLeaves;
    }
  }
  return crossing;
}

// Does a conversion leave dim 0 alone?
absl::StatusOr<bool> KeepsExperts(const Node& n, const Mesh& mesh) {
  ASSIGN_OR_RETURN(const std::vector<ConversionPart> parts, ConversionParts(n, mesh));
  for (const ConversionStep& step : parts[0].steps) {
    for (const Move& m : step.moves) {
      if (m.from == 0 || m.to == 0) return false;
    }
  }
  return true;
}

class Splitter {
 public:
  Splitter(Function& f, int64_t parts) : f_(f), mesh_(f.module()->mesh()), parts_(parts) {}

  absl::StatusOr<bool> Run() {
    RETURN_IF_ERROR(FindRegion());
    if (region_.empty()) return false;
    for (Node* n : f_.Nodes()) {
      if (region_.count(n)) RETURN_IF_ERROR(Split(n));
    }
    // From the end: what still reads a whole value reads the join of its parts.
    const std::vector<Node*> nodes = f_.Nodes();
    for (auto it = nodes.rbegin(); it != nodes.rend(); ++it) {
      if (region_.count(*it)) f_.Erase(*it);
    }
    return true;
  }
  int exchanges() const { return exchanges_; }

 private:
  using Key = std::pair<Value, Phase>;

  absl::Status FindRegion() {
    for (const auto& n : f_.body()) {
      ASSIGN_OR_RETURN(const Crossing crossing, CrossingOf(*n, mesh_));
      if (crossing == Crossing::kArrives) {
        RETURN_IF_ERROR(CheckDivides(n->type()));
        region_.insert(n.get());
        of_experts_.insert(n->result());
        exchanges_ += static_cast<int>(parts_);
        continue;
      }
      bool reads = false;
      for (const Value& v : n->operands()) reads = reads || of_experts_.count(v);
      if (!reads) continue;
      if (crossing == Crossing::kLeaves) {
        region_.insert(n.get());
        exchanges_ += static_cast<int>(parts_);
        continue;
      }
      ASSIGN_OR_RETURN(const bool batch, ExpertsAreABatch(*n));
      if (!batch) continue;
      region_.insert(n.get());
      for (int r = 0; r < n->num_results(); ++r) of_experts_.insert(n->result(r));
    }
    return absl::OkStatus();
  }

  absl::Status CheckDivides(const Type& type) const {
    const int64_t local = type.dims[0] / mesh_.Size(type.placement.dims[0]);
    if (local % parts_ == 0) return absl::OkStatus();
    std::vector<int64_t> legal;
    for (int64_t k = 1; k <= local; ++k) {
      if (local % k == 0) legal.push_back(k);
    }
    return absl::InvalidArgumentError(
        absl::StrCat("moe_chunks = ", parts_, " does not divide the ", local,
                     " experts of a rank; legal here: ", absl::StrJoin(legal, ", ")));
  }

  // Every result has the experts in dim 0, and one part of it follows from that part of the operands.
  absl::StatusOr<bool> ExpertsAreABatch(const Node& n) const {
    if (n.op().Has(kStateful) || n.op().Has(kDecision) || n.op().variadic_results) return false;
    if (ConvertsOne(n)) {
      bool accumulated = true;  // gradients of weights travel whole
      for (const Use& u : n.uses()) accumulated = accumulated && u.user->op().Has(kStateful);
      if (accumulated) return false;
      return KeepsExperts(n, mesh_);
    }
    ASSIGN_OR_RETURN(const ShardingRule* rule, n.Rule());
    int experts = -1;
    for (int i = 0; i < n.num_operands(); ++i) {
      if (!of_experts_.count(n.operand(i))) continue;
      const FactorDim& dim = rule->operands[i][0];
      if (dim.size() != 1 || (experts >= 0 && dim[0] != experts)) return false;
      experts = dim[0];
    }
    const auto first_only = [&](const FactorTerm& term, bool must) {
      bool has = false;
      for (size_t d = 0; d < term.size(); ++d) {
        for (const FactorId x : term[d]) {
          if (x != experts) continue;
          if (d != 0 || term[d].size() != 1) return false;
          has = true;
        }
      }
      return has || !must;
    };
    for (const FactorTerm& term : rule->operands) {
      if (!first_only(term, false)) return false;
    }
    for (const FactorTerm& term : rule->results) {
      if (!first_only(term, true)) return false;
    }
    return !n.Has("extents");
  }

  Type PartType(Type type) const {
    type.dims[0] /= parts_;
    return type;
  }

  // Factors of moe.split_experts and moe.join_experts: r and the other dims as the value has them.
  absl::Status Place(Node* n, const Type& whole) const {
    ASSIGN_OR_RETURN(const ShardingRule* rule, n->Rule());
    n->assignment.assign(rule->num_factors(), {});
    n->assignment[rule->Find("r")] = whole.placement.dims[0];
    for (int d = 1; d < whole.rank(); ++d) {
      n->assignment[rule->Find(absl::StrCat("x", d))] = whole.placement.dims[d];
    }
    return absl::OkStatus();
  }

  Attributes Cut(const Type& whole) const {
    return {{"chunks", parts_}, {"ways", ways_ > 0 ? ways_ : mesh_.Size(whole.placement.dims[0])}};
  }

  absl::StatusOr<std::vector<Value>> PartsOf(Value v, Node* user) {
    const auto made = values_.find(v);
    if (made != values_.end()) return made->second;
    auto& parts = cuts_[Key(v, user->phase)];
    if (!parts.empty()) return parts;
    Builder b = Builder::Before(user);
    b.provenance = {"split-experts", absl::StrCat("for %", user->result_name())};
    ASSIGN_OR_RETURN(Node * split, b.CreateTyped("moe.split_experts", {v}, Cut(v.type()),
                                                 std::vector<Type>(parts_, PartType(v.type())), v.name()));
    RETURN_IF_ERROR(Place(split, v.type()));
    for (int k = 0; k < parts_; ++k) parts.push_back(split->result(k));
    return parts;
  }

  absl::Status Split(Node* n) {
    // The ranks that share the experts: as many ways are their blocks apart where a value is not sharded yet.
    ASSIGN_OR_RETURN(const Crossing crossing, CrossingOf(*n, mesh_));
    if (crossing == Crossing::kArrives) ways_ = mesh_.Size(n->type().placement.dims[0]);
    if (crossing == Crossing::kLeaves) ways_ = mesh_.Size(n->operand(0).type().placement.dims[0]);
    const ShardingRule* rule = nullptr;
    int experts = -1;
    if (!ConvertsOne(*n)) {
      ASSIGN_OR_RETURN(rule, n->Rule());
      experts = rule->results[0][0][0];
    }
    std::vector<std::vector<Value>> operands;  // of each part
    operands.resize(parts_);
    for (int i = 0; i < n->num_operands(); ++i) {
      const Value v = n->operand(i);
      const bool cut = rule == nullptr || (!rule->operands[i].empty() && !rule->operands[i][0].empty() &&
                                           rule->operands[i][0][0] == experts);
      std::vector<Value> parts(parts_, v);
      if (cut) {
        ASSIGN_OR_RETURN(parts, PartsOf(v, n));
      }
      for (int k = 0; k < parts_; ++k) operands[k].push_back(parts[k]);
    }
    std::vector<Type> types;
    for (int r = 0; r < n->num_results(); ++r) types.push_back(PartType(n->type(r)));
    Builder b = Builder::Before(n);
    b.provenance = {"split-experts", n->provenance.reason};
    for (int k = 0; k < parts_; ++k) {
      ASSIGN_OR_RETURN(Node * part, b.CreateTyped(n->op_name(), operands[k], n->attributes(), types,
                                                  absl::StrCat(n->result_name(), ".part", k)));
      part->queue = n->queue;
      part->assignment = n->assignment;
      for (int r = 0; r < n->num_results(); ++r) values_[n->result(r)].push_back(part->result(r));
    }
    for (int r = 0; r < n->num_results(); ++r) RETURN_IF_ERROR(Join(n, r));
    return absl::OkStatus();
  }

  // For readers that want the value whole.
  absl::Status Join(Node* n, int r) {
    std::map<Phase, Value> joined;
    // In the order of the nodes: what is joined in front of a reader also serves those behind it.
    std::map<const Node*, int> place;
    for (const auto& node : f_.body()) place.emplace(node.get(), static_cast<int>(place.size()));
    std::vector<Use> uses = n->uses(r);
    const auto at = [&](const Use& u) { return place.count(u.user) ? place[u.user] : 1 << 30; };
    std::stable_sort(uses.begin(), uses.end(), [&](const Use& a, const Use& b) { return at(a) < at(b); });
    for (const Use& u : uses) {
      if (region_.count(u.user)) continue;
      const Phase phase = u.user->Is("return") ? n->phase : u.user->phase;
      auto [it, fresh] = joined.try_emplace(phase);
      if (fresh) {
        Builder b = phase == n->phase ? Builder::Before(n) : Builder::Before(u.user);
        b.phase = phase;
        b.provenance = {"split-experts",
                        absl::StrCat("for %", u.user->Is("return") ? "the result" : u.user->result_name())};
        ASSIGN_OR_RETURN(Node * join, b.CreateTyped("moe.join_experts", values_.at(n->result(r)),
                                                    Cut(n->type(r)), {n->type(r)}, n->result_name(r)));
        RETURN_IF_ERROR(Place(join, n->type(r)));
        it->second = join->result();
      }
      u.user->SetOperand(u.operand, it->second);
    }
    return absl::OkStatus();
  }

  Function& f_;
  const Mesh& mesh_;
  const int64_t parts_;
  std::set<const Node*> region_;
  std::set<Value> of_experts_;                  // values that region nodes give and others of the region read
  std::map<Value, std::vector<Value>> values_;  // of region nodes: their parts
  std::map<Key, std::vector<Value>> cuts_;      // of other values, by the phase that needs them
  int64_t ways_ = 0;
  int exchanges_ = 0;
};

}  // namespace

bool AsksForExpertParts(const PassContext& context) { return context.strategy.moe_chunks > 1; }

absl::StatusOr<bool> SplitExperts(Program& program, const PassContext& context) {
  if (!AsksForExpertParts(context)) return false;
  bool changed = false;
  int exchanges = 0;
  for (const auto& f : program.module->functions()) {
    Splitter splitter(*f, context.strategy.moe_chunks);
    ASSIGN_OR_RETURN(const bool split, splitter.Run());
    changed = changed || split;
    exchanges += splitter.exchanges();
  }
  if (changed)
    context.Note(absl::StrCat(exchanges, " exchanges of ", context.strategy.moe_chunks, " parts each layer"));
  return changed;
}

}  // namespace moe::passes
