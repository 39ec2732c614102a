// How one node is placed: the candidates per axis, and the cost of each combination.

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "moe/passes/shard/shard_search.h"

namespace moe::passes {

struct ShardSearch::Candidate {
  double cost = std::numeric_limits<double>::infinity();
  double work = 0;
  double spare = 0;  // bytes of results that are made in another placement than their seed, hence kept twice
  FactorAssignment assignment;
  std::vector<PlacementId> operands, results;

  bool Beats(const Candidate& other) const {
    const double slack = 1e-6 + 1e-9 * std::min(cost, other.cost);
    if (cost < other.cost - slack) return true;
    if (cost > other.cost + slack) return false;
    if (work < other.work * (1 - 1e-9)) return true;
    return work < other.work * (1 + 1e-9) && spare < other.spare;
  }
};

void ShardSearch::FactorAxes(const ShardNode& n, const FactorTerm& term, const Placement& p,
                             std::vector<std::pair<AxisId, FactorId>>* out) const {
  for (size_t d = 0; d < term.size(); ++d) {
    const FactorDim& factors = term[d];
    if (factors.empty()) continue;
    size_t k = 0;
    int64_t left = n.extents[factors[0]];
    for (AxisId a : p.dims[d]) {
      while (left == 1 && k + 1 < factors.size()) left = n.extents[factors[++k]];
      if (left % mesh_.size(a)) break;
      left /= mesh_.size(a);
      out->push_back({a, factors[k]});
    }
  }
}

// False if a minor factor is sharded although the majors of its dim are not exhausted.
bool ShardSearch::DimsOf(const ShardNode& n, const FactorTerm& term, const FactorAssignment& assignment,
                         Placement* p) const {
  p->dims.resize(term.size());
  for (size_t d = 0; d < term.size(); ++d) {
    AxisList axes;
    bool exhausted = true;
    for (FactorId f : term[d]) {
      const AxisList& mine = assignment[f];
      if (!mine.empty()) {
        if (!exhausted) return false;
        axes.insert(axes.end(), mine.begin(), mine.end());
      }
      exhausted = exhausted && mesh_.Size(mine) == n.extents[f];
    }
    p->dims[d] = std::move(axes);
  }
  return true;
}

ShardMemo::Decision ShardSearch::Decide(const ShardNode& n) {
  const int num_axes = mesh_.num_axes();
  std::vector<std::vector<Option>> options(num_axes);
  std::vector<Option> forced(num_axes, kNothing);
  std::vector<bool> is_forced(num_axes, false);
  std::vector<Preference> preferences;
  const auto offer = [&](AxisId a, Option o) {
    if (std::find(options[a].begin(), options[a].end(), o) == options[a].end()) options[a].push_back(o);
  };
  const auto offer_all = [&](const FactorTerm& term, PlacementId p) {
    preferences.push_back({&term, p});
    std::vector<std::pair<AxisId, FactorId>> axes;
    FactorAxes(n, term, planner_.Get(p), &axes);
    for (const auto& [a, f] : axes) {
      if (!n.rule->fixed[f]) offer(a, f);
    }
  };
  const auto force = [&](const FactorTerm& term, PlacementId p) {
    std::vector<std::pair<AxisId, FactorId>> axes;
    FactorAxes(n, term, planner_.Get(p), &axes);
    for (const auto& [a, f] : axes) forced[a] = f, is_forced[a] = true;
  };

  const bool jointly = n.op->linearity == Linearity::kJointly;
  for (size_t i = 0; i < n.operands.size(); ++i) {
    const FactorTerm& term = n.rule->operands[i];
    if (const PlacementId p = Stationary(n, static_cast<int>(i)); p != kNoPlacement) {
      preferences.insert(preferences.begin(), {&term, p});
      force(term, p);
      continue;
    }
    for (PlacementId p : variants_[n.operands[i]]) {
      offer_all(term, p);
      for (const Partial& q : planner_.Get(p).partial) {
        if (q.kind != Reduction::kSum) continue;
        if (jointly) offer(q.axis, kPassAll);
        if (n.op->IsLinearIn(static_cast<int>(i))) offer(q.axis, static_cast<Option>(kPassFirst - i));
      }
    }
  }
  if (n.hint >= 0 && (n.strong_hint || policy_.hints)) {
    const ShardValue& h = g_.values[n.hint];
    const PlacementId p = h.stationary != kNoPlacement ? h.stationary : variants_[n.hint][0];
    if (planner_.Get(p).dims.size() == n.rule->results[0].size()) offer_all(n.rule->results[0], p);
  }
  for (size_t r = 0; r < n.results.size(); ++r) {
    const ShardValue& v = g_.values[n.results[r]];
    // A weight gradient is produced where its parameter computes.
    if (v.gradient_of != kNoPlacement) force(n.rule->results[r], v.gradient_of);
    if (v.seed_kind != SeedKind::kNone) preferences.push_back({&n.rule->results[r], v.seed});
  }
  if (!n.op->routed_factor.empty()) {
    const Option routed = static_cast<Option>(n.rule->Find(n.op->routed_factor));
    for (AxisId a : axes_) {
      if (!MayRoute(n, a)) {
        options[a].erase(std::remove(options[a].begin(), options[a].end(), routed), options[a].end());
      } else if (MustRoute(n, a)) {
        forced[a] = routed, is_forced[a] = true;
      }
    }
  }
  for (AxisId a : axes_) {
    if (is_forced[a]) {
      options[a] = {forced[a]};
    } else {
      options[a].push_back(kNothing);
    }
  }

  Candidate best;
  bool found = false;
  std::vector<Option> combination(num_axes, kNothing);
  std::vector<size_t> choice(axes_.size(), 0);
  while (true) {  // the last axis varies fastest
    for (size_t k = 0; k < axes_.size(); ++k) combination[axes_[k]] = options[axes_[k]][choice[k]];
    Candidate candidate;
    if (Try(n, combination, preferences, &candidate) && (!found || candidate.Beats(best))) {
      best = std::move(candidate);
      found = true;
    }
    int k = static_cast<int>(axes_.size()) - 1;
    while (k >= 0 && ++choice[k] == options[axes_[k]].size()) choice[k--] = 0;
    if (k < 0) break;
  }
  ShardMemo::Decision decision;
  decision.found = found;
  decision.assignment = std::move(best.assignment);
  decision.operands = std::move(best.operands);
  decision.results = std::move(best.results);
  return decision;
}

bool ShardSearch::Try(const ShardNode& n, const std::vector<Option>& combination,
                      const std::vector<Preference>& preferences, Candidate* candidate) {
  FactorAssignment& assignment = candidate->assignment;
  assignment.resize(n.rule->num_factors());
  absl::InlinedVector<std::pair<AxisId, int>, 4> passed;  // operand, -1: all
  for (AxisId a : axes_) {
    const Option o = combination[a];
    if (o >= 0) {
      assignment[o].push_back(a);
    } else if (o != kNothing) {
      passed.push_back({a, o == kPassAll ? -1 : kPassFirst - o});
    }
  }
  for (size_t f = 0; f < assignment.size(); ++f) {
    AxisList& axes = assignment[f];
    if (axes.empty()) continue;
    if (n.rule->fixed[f] || n.extents[f] % mesh_.Size(axes)) return false;
    if (n.rule->factors[f] == n.op->exchanged_factor && n.extents[f] != mesh_.Size(axes)) return false;
    if (axes.size() < 2) continue;
    for (const Preference& preference : preferences) {  // the order that some operand has
      AxisList order;
      const Placement& p = planner_.Get(preference.placement);
      for (size_t d = 0; d < preference.term->size(); ++d) {
        const FactorDim& dim = (*preference.term)[d];
        if (std::find(dim.begin(), dim.end(), static_cast<FactorId>(f)) == dim.end()) continue;
        for (AxisId a : p.dims[d]) {
          if (std::find(axes.begin(), axes.end(), a) != axes.end()) order.push_back(a);
        }
      }
      if (order.size() == axes.size()) {
        axes = order;
        break;
      }
    }
  }

  double cost = 0;
  for (size_t i = 0; i < n.operands.size(); ++i) {
    Placement p;
    if (!DimsOf(n, n.rule->operands[i], assignment, &p)) return false;
    for (const auto& [a, operand] : passed) {
      if (operand < 0 || operand == static_cast<int>(i)) p.AddPartial({a, Reduction::kSum});
    }
    const PlacementId id = planner_.Intern(p);
    const PlacementId stationary = Stationary(n, static_cast<int>(i));
    if (stationary != kNoPlacement && stationary != id) return false;
    candidate->operands.push_back(id);
    cost += Best(n.operands[i], id, 0).cost;
  }
  for (size_t r = 0; r < n.results.size(); ++r) {
    const ShardValue& v = g_.values[n.results[r]];
    Placement p;
    if (!DimsOf(n, n.rule->results[r], assignment, &p)) return false;
    for (size_t f = 0; f < assignment.size(); ++f) {
      if (!n.in_operands[f] || n.rule->InResult(static_cast<int>(r), static_cast<FactorId>(f))) continue;
      for (AxisId a : assignment[f]) p.AddPartial({a, n.op->reduction});
    }
    for (const auto& [a, operand] : passed) p.AddPartial({a, Reduction::kSum});
    const PlacementId id = planner_.Intern(p);
    candidate->results.push_back(id);
    if (v.seed_kind != SeedKind::kNone) {
      cost += SeedCost(v, id);
      if (SeedOf(v, id) != id) candidate->spare += Local(v, id);
      continue;
    }
    if (!p.partial.empty()) {
      // A deferred partial is a debt: a reduce_scatter if a seed wants it scattered, else an all_reduce.
      ConversionStep debt{StepKind::kReduceScatter, {}};
      bool scattered = false;
      for (const Partial& q : p.partial) {
        debt.moves.push_back({q.axis});
        scattered |= (g_.residual_axes >> q.axis & 1) != 0;
      }
      if (policy_.debt_doubles && !scattered) debt.kind = StepKind::kAllReduce;
      cost += planner_.StepCostInBytes(debt, Local(v, id));
    }
    for (size_t d = 0; d < p.dims.size(); ++d) {
      // Sharding a dim that a consumer needs whole: an all_gather to come.
      if ((v.blocked >> d & 1) == 0 || p.dims[d].empty()) continue;
      ConversionStep gather{StepKind::kAllGather, {}};
      for (const AxisId a : p.dims[d]) gather.moves.push_back({a});
      cost += planner_.StepCostInBytes(gather, Local(v, id));
    }
  }
  if (std::isinf(cost)) return false;
  double work = 1;
  for (size_t f = 0; f < assignment.size(); ++f) {
    work *= static_cast<double>(n.extents[f]) / static_cast<double>(mesh_.Size(assignment[f]));
  }
  candidate->cost = cost;
  candidate->work = work;
  return true;
}

}  // namespace moe::passes
