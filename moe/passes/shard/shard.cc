#include "moe/passes/shard/shard.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/passes/shard/seeds.h"
#include "moe/passes/shard/shard_emit.h"
#include "moe/passes/shard/shard_graph.h"
#include "moe/passes/shard/shard_search.h"
#include "moe/strategy/fold.h"

namespace moe::passes {
namespace {

struct FunctionPlan {
  Function* function = nullptr;
  ShardGraph graph;
  ShardPlan plan;
  // The least per microbatch, its share of what a step reduces once included, by dispatcher; empty: nothing
  // is routed.
  std::map<ShardPolicy::Dispatcher, double> cost;
};

// The whole module under one order of axes.
struct ModulePlan {
  AxisOrders orders;
  StatePlacements states;
  std::vector<FunctionPlan> functions;
  double cost = 0;  // bytes per rank and step, weighed by the links (conversion.h)
};

bool Accumulates(const Function& f) {
  return std::any_of(f.body().begin(), f.body().end(),
                     [](const auto& n) { return n->Is("optim.accumulate"); });
}

bool Uses(const Function& f, const std::set<std::string>& states) {
  return std::any_of(f.args().begin(), f.args().end(), [&](const Node* a) {
    return a->binding.kind == Binding::kState && states.count(a->binding.name) > 0;
  });
}

// Whether there is something to choose a dispatcher for.
bool HasRouting(const ShardGraph& g) {
  return g.routed_axes != 0 && std::any_of(g.nodes.begin(), g.nodes.end(),
                                           [](const ShardNode& n) { return !n.op->routed_factor.empty(); });
}

class ModuleSharder {
 public:
  ModuleSharder(Module* module, const PassContext& context)
      : module_(*module),
        context_(context),
        planner_(module->mesh(), context.target, context.strategy.hierarchical != strategy::Toggle::kOff) {}

  absl::Status Run() {
    ModulePlan best;
    absl::Status first_error;
    for (const AxisOrders& orders : CandidateOrders(module_.mesh(), context_.strategy)) {
      absl::StatusOr<ModulePlan> plan = PlanModule(orders);
      if (!plan.ok()) {
        if (first_error.ok()) first_error = plan.status();
      } else if (best.functions.empty() || plan->cost < best.cost * (1 - 1e-9)) {
        best = *std::move(plan);
      }
    }
    if (best.functions.empty() && !first_error.ok()) return first_error;
    context_.Count("decisions", static_cast<int64_t>(memo_.decisions.size()));
    context_.Count("remembered", memo_.hits);
    return Write(best);
  }

 private:
  absl::StatusOr<ModulePlan> PlanModule(const AxisOrders& orders) {
    const Seeds seeds(module_.mesh(), context_.strategy, orders);
    RETURN_IF_ERROR(seeds.Check(module_));
    ModulePlan out;
    out.orders = orders;
    out.states = SeedStates(module_, seeds, context_.layout);
    // Functions that add to accumulators decide how those are placed; the others follow.
    for (bool accumulates : {true, false}) {
      const size_t begin = out.functions.size();
      for (const auto& f : module_.functions()) {
        if (Accumulates(*f) != accumulates) continue;
        out.functions.emplace_back();
        out.functions.back().function = f.get();
        RETURN_IF_ERROR(PlanFunction(seeds, out.states, &out.functions.back()));
      }
      if (!accumulates) continue;
      // An accumulator that several functions, or several values, add to is partial over all their axes.
      std::map<std::string, Placement> agreed;
      std::set<std::string> disputed;
      for (const FunctionPlan& f : out.functions) {
        for (const auto* placements : {&f.plan.decided, &f.plan.wanted}) {
          for (const auto& [name, id] : *placements) {
            const auto [it, fresh] = agreed.emplace(name, planner_.Get(id));
            if (fresh || it->second == planner_.Get(id)) continue;
            for (const Partial& p : planner_.Get(id).partial) it->second.AddPartial(p);
            disputed.insert(name);
          }
        }
      }
      for (const auto& [name, placement] : agreed) {
        out.states[name].decided = true;
        out.states[name].placement = placement;
      }
      for (size_t i = begin; i < out.functions.size(); ++i) {
        FunctionPlan& f = out.functions[i];
        if (Uses(*f.function, disputed)) RETURN_IF_ERROR(PlanFunction(seeds, out.states, &f));
      }
    }
    for (const FunctionPlan& f : out.functions) {
      out.cost += f.plan.cost * (Accumulates(*f.function) ? seeds.microbatches() : 1);
    }
    return out;
  }

  // The cheapest plan of one function over the policies.
  absl::Status PlanFunction(const Seeds& seeds, const StatePlacements& states, FunctionPlan* f) {
    RETURN_IF_ERROR(BuildShardGraph(f->function, seeds, states, &planner_, &signatures_, &f->graph));
    bool found = false;
    absl::Status first_error;
    const bool routes = HasRouting(f->graph);
    f->cost.clear();
    for (const ShardPolicy& policy : ShardPolicies(routes, context_.strategy.dispatcher)) {
      absl::StatusOr<ShardPlan> plan =
          ShardSearch(f->graph, &planner_, policy, seeds.microbatches(), &memo_).Run();
      if (!plan.ok()) {
        if (first_error.ok()) first_error = plan.status();
        continue;
      }
      if (routes) {
        const double cost = plan->cost + plan->deferred;
        double& least = f->cost.try_emplace(policy.dispatcher, cost).first->second;
        least = std::min(least, cost);
      }
      if (found && plan->cost + plan->deferred >= f->plan.cost + f->plan.deferred - 1e-6) continue;
      f->plan = *std::move(plan);
      found = true;
    }
    if (found) return absl::OkStatus();
    return Annotate(first_error, absl::StrCat("shard: @", f->function->name()));
  }

  absl::Status Write(const ModulePlan& best) {
    EmitCounts counts;
    for (const FunctionPlan& f : best.functions) {
      ASSIGN_OR_RETURN(const EmitCounts c, EmitPlan(f.graph, f.plan, &planner_));
      counts.placed += c.placed;
      counts.conversions += c.conversions;
      counts.clones += c.clones;
    }
    int64_t parameters = 0, sharded = 0;
    for (const auto& s : module_.states()) {
      const StatePlacement& p = best.states.at(s->name);
      s->type.placement = p.placement;
      if (!p.is_parameter) continue;
      ++parameters;
      sharded += !p.compute.IsReplicated() || !p.placement.IsReplicated();
    }
    context_.Note(absl::StrCat(parameters, " parameters, ", sharded, " of them sharded; ", counts.placed,
                               " nodes, ", counts.conversions, " conversions, ", counts.clones,
                               " producers placed anew",
                               best.orders.reverse_ep || best.orders.regroup_dp
                                   ? absl::StrCat("; axis order: ", best.orders.ToString())
                                   : ""));
    NoteDispatcher(best);
    return WarnOfCutGroups(best);
  }

  // Which way the tokens go, and by what margin.
  void NoteDispatcher(const ModulePlan& best) const {
    double taken = 0;
    std::map<ShardPolicy::Dispatcher, double> total;
    for (const FunctionPlan& f : best.functions) {
      if (f.cost.empty()) continue;
      taken += f.plan.cost + f.plan.deferred;
      for (const auto& [way, cost] : f.cost) total[way] += cost;
    }
    std::vector<std::string> others;
    std::string name = "alltoall here, allgather there";
    for (const auto& [way, word] :
         {std::pair(ShardPolicy::kAllToAll, "alltoall"), {ShardPolicy::kAllGather, "allgather"}}) {
      const auto it = total.find(way);
      if (it == total.end()) continue;
      if (it->second <= taken * (1 + 1e-9)) {
        name = word;
      } else {
        others.push_back(absl::StrFormat("%s %.2f", word, it->second / (1 << 20)));
      }
    }
    if (total.empty()) return;
    context_.Note(
        absl::StrFormat("dispatcher %s: %.2f MiB sent per rank and microbatch%s%s", name, taken / (1 << 20),
                        module_.mesh().aliases().count("node") ? ", weighed by the links" : "",
                        others.empty() ? "" : absl::StrCat(" (", absl::StrJoin(others, ", "), ")")));
  }

  // A layout that shards the sequence finer than the routing groups pays for it.
  absl::Status WarnOfCutGroups(const ModulePlan& best) {
    const Seeds seeds(module_.mesh(), context_.strategy, best.orders);
    for (const auto& f : module_.functions()) {
      for (const Node* n : f->NodesOf("moe.slots")) {
        ASSIGN_OR_RETURN(const ShardingRule* rule, n->Rule());
        ASSIGN_OR_RETURN(const std::vector<int64_t> extents, FactorExtents(*n));
        const int c = rule->Find("c");
        if (c < 0) continue;
        const Placement residual = seeds.ResidualStream(Type(DType::kF32, {1, 1, 1}));
        const int64_t parts = module_.mesh().Size(residual.dims[1]);
        if (extents[c] % parts == 0) continue;
        context_.Note(absl::StrCat("the sequence is sharded ", parts, " ways, which cuts its ", extents[c],
                                   extents[c] == 1 ? " routing group" : " routing groups",
                                   ": tokens are gathered before slots are assigned"));
        return absl::OkStatus();
      }
    }
    return absl::OkStatus();
  }

  Module& module_;
  const PassContext& context_;
  ConversionPlanner planner_;
  SignatureTable signatures_;
  ShardMemo memo_;
};

}  // namespace

absl::StatusOr<bool> Shard(Program& program, const PassContext& context) {
  Module& module = *program.module;
  if (module.mesh().num_axes() == 0 && context.strategy.world() > 1) {
    ASSIGN_OR_RETURN(module.mesh(),
                     strategy::FoldMesh(context.strategy, AttrInt(module.attributes(), "kv_heads")));
  }
  RETURN_IF_ERROR(ModuleSharder(&module, context).Run());
  return true;
}

}  // namespace moe::passes
