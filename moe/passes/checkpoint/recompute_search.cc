#include "moe/passes/checkpoint/recompute_search.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "moe/passes/checkpoint/min_cut.h"

namespace moe::passes {
namespace {

// How much dearer a byte of the first value is than one of the last.
constexpr double kTilt = 1e-3;
// Branch and bound may look at so many nodes of the problem in all: hundreds of cuts of a layer, dozens of a
// large chunk.
constexpr int64_t kWork = 60'000;

class Search {
 public:
  Search(const RecomputeProblem& problem, int64_t budget) : p_(problem), budget_(budget) {}

  RecomputeChoice Run() {
    RecomputeChoice all = Evaluate(p_, std::vector<bool>(p_.nodes.size(), false));
    if (all.bytes <= budget_) return all;
    double total = 0;
    for (const RecomputeProblem::Node& n : p_.nodes) total += n.cost;
    RecomputeChoice within = Cheapest(1 + 4 * total, /*tilted=*/false);  // a byte outweighs all costs
    if (within.bytes > budget_) {
      within.fits = false;
      return within;
    }
    const double price = Corners(std::move(all), &within);
    const RecomputeChoice level = Cheapest(price, /*tilted=*/false);
    const double bound =
        level.cost + price * (static_cast<double>(level.bytes) - static_cast<double>(budget_));
    Drop(&within);
    decided_.assign(p_.nodes.size(), kOpen);
    best_ = std::move(within);
    Branch(price);
    best_.at_least = work_ <= kWork ? best_.cost : std::clamp(bound, 0.0, best_.cost);
    return best_;
  }

 private:
  double Weight(size_t value, bool tilted) const {
    const double place = static_cast<double>(value) / static_cast<double>(p_.values.size());
    return static_cast<double>(p_.values[value].bytes) * (tilted ? 1 + kTilt * (1 - place) : 1);
  }

  double WeightOf(const RecomputeChoice& c) const {
    double weight = 0;
    for (const size_t v : Saved(c)) weight += Weight(v, true);
    return weight;
  }

  std::vector<size_t> Saved(const RecomputeChoice& c) const {
    std::vector<bool> needed(p_.values.size());
    for (size_t v = 0; v < needed.size(); ++v) needed[v] = p_.values[v].needed;
    for (size_t n = 0; n < p_.nodes.size(); ++n) {
      if (!c.recompute[n]) continue;
      for (const int v : p_.nodes[n].reads) needed[v] = true;
    }
    std::vector<size_t> saved;
    for (size_t v = 0; v < needed.size(); ++v) {
      if (needed[v] && !c.recompute[p_.values[v].node]) saved.push_back(v);
    }
    return saved;
  }

  RecomputeChoice Cheapest(double price, bool tilted) const {
    const int nodes = static_cast<int>(p_.nodes.size()), values = static_cast<int>(p_.values.size());
    const int source = nodes + 2 * values, sink = source + 1;
    MinCut cut(sink + 1);
    const auto in = [&](int v) { return nodes + 2 * v; };
    const auto out = [&](int v) { return nodes + 2 * v + 1; };
    for (int n = 0; n < nodes; ++n) {
      const Decided decided = decided_.empty() ? kOpen : decided_[n];
      cut.AddEdge(source, n, p_.nodes[n].may && decided != kOff ? p_.nodes[n].cost : MinCut::kInfinite);
      if (decided == kOn) cut.AddEdge(n, sink, MinCut::kInfinite);
      for (const int v : p_.nodes[n].makes) cut.AddEdge(n, in(v), MinCut::kInfinite);
      for (const int v : p_.nodes[n].reads) cut.AddEdge(out(v), n, MinCut::kInfinite);
    }
    for (int v = 0; v < values; ++v) {
      cut.AddEdge(in(v), out(v), price * Weight(v, tilted));
      if (p_.values[v].needed) cut.AddEdge(out(v), sink, MinCut::kInfinite);
    }
    cut.Solve(source, sink);
    std::vector<bool> recompute(nodes);
    for (int n = 0; n < nodes; ++n) recompute[n] = cut.OnSinkSide(n);
    return Evaluate(p_, std::move(recompute));
  }

  // The corners on both sides of the budget; `within` becomes the cheaper one that fits. Gives the price
  // between them.
  double Corners(RecomputeChoice above, RecomputeChoice* within) const {
    double price = 0;
    for (int step = 0; step < 64; ++step) {
      const double above_weight = WeightOf(above), within_weight = WeightOf(*within);
      if (above_weight <= within_weight) break;
      price = (within->cost - above.cost) / (above_weight - within_weight);
      if (!(price > 0)) break;
      RecomputeChoice middle = Cheapest(price, /*tilted=*/true);
      const double best = middle.cost + price * WeightOf(middle);
      const double known = within->cost + price * within_weight;
      if (best >= known * (1 - 1e-9)) break;
      (middle.bytes <= budget_ ? *within : above) = std::move(middle);
    }
    return price;
  }

  // Leaves out nodes where the budget allows, dearest first.
  void Drop(RecomputeChoice* c) const {
    std::vector<int> order(p_.nodes.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return p_.nodes[a].cost > p_.nodes[b].cost; });
    for (const int n : order) {
      if (!c->recompute[n]) continue;
      std::vector<bool> recompute = c->recompute;
      recompute[n] = false;
      RecomputeChoice fewer = Evaluate(p_, std::move(recompute));
      if (fewer.bytes <= budget_ && fewer.cost < c->cost) *c = std::move(fewer);
    }
  }

  // Depth first over the nodes that are computed again (or not), by the bound that the price gives. Nodes
  // that the relaxed choice computes again are decided first, dearest first: there the budget is not met, or
  // met too well.
  void Branch(double price) {
    work_ += static_cast<int64_t>(p_.nodes.size());
    if (work_ > kWork) return;
    const RecomputeChoice relaxed = Cheapest(price, /*tilted=*/false);
    double forced = 0;  // a node forced on though nothing needs it still costs
    for (size_t n = 0; n < p_.nodes.size(); ++n) {
      if (decided_[n] == kOn && !relaxed.recompute[n]) forced += p_.nodes[n].cost;
      if (decided_[n] == kOff && relaxed.recompute[n]) return;
    }
    const double bound =
        relaxed.cost + forced + price * (static_cast<double>(relaxed.bytes) - static_cast<double>(budget_));
    if (bound >= best_.cost * (1 - 1e-9)) return;
    if (relaxed.bytes <= budget_ && relaxed.cost < best_.cost) {
      best_ = relaxed;
      Drop(&best_);
    }
    int branch = -1;
    for (size_t n = 0; n < p_.nodes.size(); ++n) {
      if (decided_[n] != kOpen || !p_.nodes[n].may) continue;
      const auto rank = [&](size_t i) {
        return std::pair<bool, double>(relaxed.recompute[i], p_.nodes[i].cost);
      };
      if (branch < 0 || rank(n) > rank(branch)) branch = static_cast<int>(n);
    }
    if (branch < 0) return;
    const bool first = relaxed.bytes > budget_;  // too many bytes: computing more again is likelier to fit
    for (const bool on : {first, !first}) {
      decided_[branch] = on ? kOn : kOff;
      Branch(price);
    }
    decided_[branch] = kOpen;
  }

  const RecomputeProblem& p_;
  const int64_t budget_;
  enum Decided : uint8_t { kOpen, kOn, kOff };
  std::vector<Decided> decided_;  // empty: all open
  RecomputeChoice best_;
  int64_t work_ = 0;
};

}  // namespace

RecomputeChoice Evaluate(const RecomputeProblem& problem, std::vector<bool> recompute) {
  RecomputeChoice c;
  c.recompute = std::move(recompute);
  std::vector<bool> needed(problem.values.size());
  for (size_t v = 0; v < needed.size(); ++v) needed[v] = problem.values[v].needed;
  for (size_t n = problem.nodes.size(); n-- > 0;) {
    const RecomputeProblem::Node& node = problem.nodes[n];
    const bool used = std::any_of(node.makes.begin(), node.makes.end(), [&](int v) { return needed[v]; });
    c.recompute[n] = c.recompute[n] && used && node.may;
    if (!c.recompute[n]) {
      for (const int v : node.makes) c.bytes += needed[v] ? problem.values[v].bytes : 0;
      continue;
    }
    c.cost += node.cost;
    for (const int v : node.reads) needed[v] = true;
  }
  return c;
}

RecomputeChoice LeastRecomputation(const RecomputeProblem& problem, int64_t budget) {
  return Search(problem, budget).Run();
}

}  // namespace moe::passes
