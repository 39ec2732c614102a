#include "moe/passes/shard/shard_graph.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"

namespace moe::passes {
namespace {

constexpr char kResidualStream[] = "residual_stream";
constexpr char kReplicaSum[] = "replica_sum";

void RemoveDeadNodes(Function* f) {
  const std::vector<Node*> nodes = f->Nodes();
  for (auto it = nodes.rbegin(); it != nodes.rend(); ++it) {
    const bool effect = (*it)->op().Has(kStateful) || (*it)->Is("comm.stage_reduce");
    if (!(*it)->HasUses() && !effect) f->Erase(*it);
  }
}

bool HasAssignment(const Node& n) {
  return std::any_of(n.assignment.begin(), n.assignment.end(), [](const AxisList& a) { return !a.empty(); });
}

class GraphBuilder {
 public:
  GraphBuilder(Function* f, const Seeds& seeds, const StatePlacements& states, ConversionPlanner* planner,
               SignatureTable* signatures, ShardGraph* g)
      : f_(f), seeds_(seeds), states_(states), planner_(*planner), signatures_(*signatures), g_(*g) {}

  absl::Status Build() {
    g_.function = f_;
    g_.routed_axes = seeds_.RoutedAxes();
    for (Node* a : f_->args()) AddArg(a);
    for (const auto& n : f_->body()) RETURN_IF_ERROR(AddNode(n.get()));
    ResolveHints();
    SeedResults();
    FindBlocked();
    return absl::OkStatus();
  }

 private:
  int AddValue(Value v, int producer, int result) {
    const int i = static_cast<int>(g_.values.size());
    ShardValue& x = g_.values.emplace_back();
    x.value = v;
    x.bytes = ConversionPlanner::GlobalBytes(v.type());
    x.producer = producer;
    x.result = result;
    g_.index[v] = i;
    by_name_[v.name()] = i;
    return i;
  }

  const StatePlacement* StateOf(const Binding& binding) const {
    if (binding.kind != Binding::kState) return nullptr;
    const auto it = states_.find(binding.name);
    return it == states_.end() ? nullptr : &it->second;
  }

  void Fix(int v, const Placement& p) {
    g_.values[v].seed_kind = SeedKind::kFixed;
    g_.values[v].seed = planner_.Intern(p);
  }

  void AddArg(Node* a) {
    const Type& type = a->type();
    const Binding& binding = a->binding;
    const int i = AddValue(a->result(), -1, 0);
    ShardValue& x = g_.values[i];
    Placement given = type.placement;
    if (const StatePlacement* s = StateOf(binding)) {
      given = s->placement;
      if (s->is_parameter) x.stationary = planner_.Intern(s->compute), x.parameter = true;
      if (s->is_moment || s->is_copy) x.stationary = planner_.Intern(s->placement);
      if (s->open || s->is_gradient) x.open_state = binding.name;
      // Where a function reads gradients to update by them, they are brought to the optimizer's placement at
      // once.
      if (s->is_gradient && !Accumulates(a)) Fix(i, s->settled);
    } else if (binding.kind == Binding::kBatch) {
      given = seeds_.Batch(type);
      // The host gives a rank any part of it: the whole of a dim that all its uses want whole.
      for (int d = 0; d < type.rank() && !IsPlaced(type); ++d) {
        if (WantedWhole(a, d)) given.dims[d].clear();
      }
    } else if (binding.kind == Binding::kBoundary && !IsPlaced(type)) {
      given = seeds_.ResidualStream(type);
      NoteResidual(given);
    }
    x.given = planner_.Intern(given);
  }

  static bool WantedWhole(const Node* arg, int dim) {
    return arg->HasUses() && std::all_of(arg->uses().begin(), arg->uses().end(), [&](const Use& u) {
             const absl::StatusOr<const ShardingRule*> rule = u.user->Rule();
             if (!rule.ok() || u.user->Is("return")) return false;
             const FactorDim& factors = (*rule)->operands[u.operand][dim];
             return !factors.empty() && (*rule)->fixed[factors[0]];
           });
  }

  static bool Accumulates(const Node* arg) {
    return std::any_of(arg->uses().begin(), arg->uses().end(),
                       [](const Use& u) { return u.user->Is("optim.accumulate") && u.operand == 0; });
  }

  void NoteResidual(const Placement& p) {
    for (const AxisList& axes : p.dims) {
      for (AxisId a : axes) g_.residual_axes |= uint64_t{1} << a;
    }
  }

  absl::Status AddNode(Node* n) {
    const int index = static_cast<int>(g_.nodes.size());
    ShardNode& x = g_.nodes.emplace_back();
    x.node = n;
    x.op = &n->op();
    ASSIGN_OR_RETURN(x.rule, n->Rule());
    ASSIGN_OR_RETURN(x.extents, FactorExtents(*n));
    for (FactorId k = 0; k < x.rule->num_factors(); ++k) x.in_operands.push_back(x.rule->InOperands(k));
    for (const Value& v : n->operands()) x.operands.push_back(g_.index.at(v));
    for (int r = 0; r < n->num_results(); ++r) x.results.push_back(AddValue(n->result(r), index, r));

    if (n->Is("comm.stage_reduce")) {
      x.treatment = Treatment::kSettled;
    } else if (HasAssignment(*n) || absl::StartsWith(n->op_name(), "comm.")) {
      x.treatment = Treatment::kWritten;
      for (const Value& v : n->operands()) x.written_operands.push_back(planner_.Intern(v.type().placement));
      for (int r = 0; r < n->num_results(); ++r)
        x.written_results.push_back(planner_.Intern(n->type(r).placement));
    } else if (n->Is("optim.accumulate") && !g_.values[x.operands[0]].open_state.empty()) {
      x.treatment = Treatment::kAccumulate;
      SeedAccumulated(x);
    }
    if (x.treatment != Treatment::kWritten) {
      for (int r = 0; r < n->num_results(); ++r) {
        if (IsPlaced(n->type(r))) Fix(x.results[r], n->type(r).placement);
      }
    }
    if (n->StringOr("tag", "") == kResidualStream && x.treatment == Treatment::kSearch &&
        !IsPlaced(n->type())) {
      const Placement p = seeds_.ResidualStream(n->type());
      Fix(x.results[0], p);
      NoteResidual(p);
    }

    if (n->StringOr("tag", "") == kReplicaSum) {
      const Node* gradient = n->operand(0).node;
      while (gradient->Is("comm.stage_reduce")) gradient = gradient->operand(0).node;
      if (const StatePlacement* s = StateOf(gradient->binding); s != nullptr && s->is_gradient) {
        g_.values[x.results[0]].gradient_of = planner_.Intern(seeds_.ReplicaSum(s->settled, n->type()));
      }
    }

    std::vector<int64_t> key = {reinterpret_cast<int64_t>(x.op), reinterpret_cast<int64_t>(x.rule)};
    key.insert(key.end(), x.extents.begin(), x.extents.end());
    for (int v : x.operands) key.push_back(static_cast<int64_t>(g_.values[v].value.type().dtype));
    for (int v : x.results) key.push_back(static_cast<int64_t>(g_.values[v].value.type().dtype));
    x.signature = signatures_.emplace(std::move(key), static_cast<int>(signatures_.size())).first->second;
    return absl::OkStatus();
  }

  // The value added to an accumulator is seeded by it; the result is the accumulator.
  void SeedAccumulated(const ShardNode& x) {
    const std::string name = g_.values[x.operands[0]].open_state;
    const StatePlacement& s = states_.at(name);
    ShardValue& sum = g_.values[x.results[0]];
    sum.open_state = name;
    ShardValue& added = g_.values[x.operands[1]];
    if (added.seed_kind != SeedKind::kNone || added.producer < 0) return;
    added.seed = planner_.Intern(s.placement);
    // Reports are few and small: what they cost once a step decides nothing.
    if (s.is_gradient) added.settled = planner_.Intern(s.settled);
    added.seed_kind = s.open && !s.decided ? SeedKind::kOpen : SeedKind::kFixed;
    if (s.is_gradient) added.gradient_of = planner_.Intern(s.compute);
  }

  void ResolveHints() {
    for (ShardNode& x : g_.nodes) {
      const std::string like = x.node->StringOr("like", ""), dual = x.node->StringOr("dual", "");
      const auto it = by_name_.find(like.empty() ? dual : like);
      if (it == by_name_.end()) continue;
      const ShardValue& of = g_.values[it->second];
      if (of.producer >= static_cast<int>(&x - g_.nodes.data())) continue;
      x.hint = it->second;
      x.strong_hint = !like.empty();
    }
  }

  void SeedResults() {
    for (int i = 0; i < f_->num_results(); ++i) {
      const int v = g_.index.at(f_->result(i));
      g_.results.push_back(v);
      ShardValue& x = g_.values[v];
      if (!x.open_state.empty() && x.producer >= 0 &&
          g_.nodes[x.producer].treatment == Treatment::kAccumulate) {
        continue;
      }
      const Binding& binding = f_->result_binding(i);
      if (const StatePlacement* s = StateOf(binding)) {
        Fix(v, s->placement);
      } else if (binding.kind == Binding::kReport) {
        Fix(v, Placement::Replicated(x.value.type().rank()));
      } else if (binding.kind == Binding::kBoundary && x.seed_kind == SeedKind::kNone) {
        Fix(v, seeds_.ResidualStream(x.value.type()));
      }
    }
  }

  // Backward sweep: dims that some consumer, through pass-through factors, needs unsharded.
  void FindBlocked() {
    for (auto n = g_.nodes.rbegin(); n != g_.nodes.rend(); ++n) {
      uint64_t blocked = 0;  // factors
      for (FactorId k = 0; k < n->rule->num_factors(); ++k) {
        if (n->rule->fixed[k]) blocked |= uint64_t{1} << k;
      }
      for (size_t r = 0; r < n->results.size(); ++r) {
        const FactorTerm& term = n->rule->results[r];
        for (size_t d = 0; d < term.size(); ++d) {
          if ((g_.values[n->results[r]].blocked >> d & 1) && !term[d].empty())
            blocked |= uint64_t{1} << term[d][0];
        }
      }
      for (size_t i = 0; i < n->operands.size(); ++i) {
        const FactorTerm& term = n->rule->operands[i];
        for (size_t d = 0; d < term.size(); ++d) {
          if (!term[d].empty() && (blocked >> term[d][0] & 1))
            g_.values[n->operands[i]].blocked |= uint64_t{1} << d;
        }
      }
    }
  }

  Function* const f_;
  const Seeds& seeds_;
  const StatePlacements& states_;
  ConversionPlanner& planner_;
  SignatureTable& signatures_;
  ShardGraph& g_;
  std::map<std::string, int> by_name_;
};

}  // namespace

StatePlacements SeedStates(const Module& module, const Seeds& seeds, const StateLayout* layout) {
  StatePlacements out;
  const auto shared = [&](const std::string& name) -> const Placement* {
    if (layout == nullptr) return nullptr;
    const auto it = layout->placements.find(name);
    return it == layout->placements.end() ? nullptr : &it->second;
  };
  std::set<std::string> copied;  // parameters that the step reads by a working copy
  for (const auto& s : module.states()) {
    if (AttrString(s->attributes, "kind") == "working_copy") copied.insert(AttrString(s->attributes, "of"));
  }
  for (const auto& s : module.states()) {
    StatePlacement& p = out[s->name];
    const std::string kind = AttrString(s->attributes, "kind"), of = AttrString(s->attributes, "of");
    const State* parameter = of.empty() ? nullptr : module.FindState(of);
    p.placement = p.settled = s->type.placement;
    if (kind == "parameter") {
      p.is_parameter = true;
      p.placement = copied.count(s->name) ? seeds.Optimizer(*s) : seeds.Storage(*s);
      p.compute = seeds.Compute(*s);
      if (const Placement* given = shared(s->name)) p.placement = *given;
    } else if (kind == "working_copy" && parameter) {
      p.is_copy = true;
      if (!IsPlaced(s->type)) p.placement = seeds.Compute(*parameter);
      if (const Placement* given = shared(s->name)) p.placement = *given;
    } else if (kind == "moment") {
      p.is_moment = true;
      if (parameter && !IsPlaced(s->type)) p.placement = seeds.Optimizer(*parameter);
      if (const Placement* given = shared(s->name)) p.placement = *given;
    } else if (kind == "gradient" && parameter) {
      p.is_gradient = true;
      p.compute = seeds.Compute(*parameter);
      p.settled = seeds.Optimizer(*parameter);
      if (const Placement* given = shared(absl::StrCat("adam.m.", of))) p.settled = *given;
      if (!IsPlaced(s->type)) {
        const bool scattered = seeds.ScattersGradient(*parameter);
        p.open = !scattered || seeds.KeepsCopies(*parameter);
        p.placement = scattered ? p.settled : p.compute;
      }
    } else if (kind == "accumulator" && AttrString(s->attributes, "combine", "sum") == "sum") {
      p.open = !IsPlaced(s->type);
    }
  }
  return out;
}

absl::Status BuildShardGraph(Function* function, const Seeds& seeds, const StatePlacements& states,
                             ConversionPlanner* planner, SignatureTable* signatures, ShardGraph* graph) {
  RemoveDeadNodes(function);
  *graph = ShardGraph();
  return Annotate(GraphBuilder(function, seeds, states, planner, signatures, graph).Build(),
                  absl::StrCat("shard: @", function->name()));
}

std::vector<std::string> DimNames(Value value) {
  static const auto& words = *new std::map<std::string, std::string>{
      {"b", "batch"}, {"s", "sequence"}, {"c", "chunk"},      {"t", "token"},     {"e", "experts"},
      {"p", "slot"},  {"h", "hidden"},   {"f", "feature"},    {"n", "heads"},     {"k", "heads"},
      {"g", "heads"}, {"d", "head dim"}, {"v", "vocabulary"}, {"u", "vocabulary"}};
  std::vector<std::string> names(value.type().rank());
  std::vector<int> dim(names.size());  // of the value looked at, for each dim of `value`; -1: found or lost
  for (size_t d = 0; d < dim.size(); ++d) dim[d] = static_cast<int>(d);
  for (int depth = 0; depth < 64; ++depth) {
    const Node& n = *value.node;
    if (n.Is("arg")) return names;
    const absl::StatusOr<const ShardingRule*> rule = n.Rule();
    if (!rule.ok() || value.index >= static_cast<int>((*rule)->results.size())) return names;
    const FactorTerm& term = (*rule)->results[value.index];
    bool any = false;
    for (size_t d = 0; d < names.size(); ++d) {
      if (dim[d] < 0 || dim[d] >= static_cast<int>(term.size()) || term[dim[d]].empty()) continue;
      const FactorId f = term[dim[d]][0];
      if (const auto it = words.find((*rule)->factors[f]); it != words.end()) {
        names[d] = it->second;
        dim[d] = -1;
        continue;
      }
      // A factor without a meaning of its own ("a0"): ask the operand.
      int next = -1;
      if (!(*rule)->operands.empty()) {
        const FactorTerm& from = (*rule)->operands[0];
        for (size_t k = 0; k < from.size(); ++k) {
          if (!from[k].empty() && from[k][0] == f) next = static_cast<int>(k);
        }
      }
      dim[d] = next;
      any |= next >= 0;
    }
    if (!any || n.num_operands() == 0) return names;
    value = n.operand(0);
  }
  return names;
}

}  // namespace moe::passes
