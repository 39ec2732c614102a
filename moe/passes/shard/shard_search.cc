#include "moe/passes/shard/shard_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"

namespace moe::passes {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kCloneDepth = 2;

bool Contains(const std::vector<PlacementId>& list, PlacementId p) {
  return std::find(list.begin(), list.end(), p) != list.end();
}

}  // namespace

std::vector<ShardPolicy> ShardPolicies(bool routes, strategy::Dispatcher dispatcher) {
  std::vector<ShardPolicy::Dispatcher> ways = {ShardPolicy::kFree};
  if (routes && dispatcher == strategy::Dispatcher::kAuto) {
    ways = {ShardPolicy::kFree, ShardPolicy::kAllToAll, ShardPolicy::kAllGather};
  }
  if (routes && dispatcher == strategy::Dispatcher::kAllToAll) ways = {ShardPolicy::kAllToAll};
  if (routes && dispatcher == strategy::Dispatcher::kAllGather) ways = {ShardPolicy::kAllGather};
  std::vector<ShardPolicy> policies;
  for (const ShardPolicy::Dispatcher way : ways) {
    for (const bool hints : {true, false}) {
      for (const bool debt_doubles : {false, true}) policies.push_back({debt_doubles, hints, way});
    }
  }
  return policies;
}

bool ShardSearch::MayRoute(const ShardNode& n, AxisId axis) const {
  return policy_.dispatcher != ShardPolicy::kAllToAll || n.op->routed_factor.empty() ||
         (g_.routed_axes >> axis & 1) == 0;
}

bool ShardSearch::MustRoute(const ShardNode& n, AxisId axis) const {
  return policy_.dispatcher == ShardPolicy::kAllGather && !n.op->routed_factor.empty() &&
         (g_.routed_axes >> axis & 1) != 0;
}

ShardSearch::ShardSearch(const ShardGraph& graph, ConversionPlanner* planner, ShardPolicy policy,
                         double microbatches, ShardMemo* memo)
    : g_(graph),
      planner_(*planner),
      mesh_(planner->mesh()),
      policy_(policy),
      microbatches_(std::max(1.0, microbatches)),
      memo_(*memo),
      axes_(mesh_.SpmdAxes()),
      variants_(graph.values.size()) {}

absl::StatusOr<ShardPlan> ShardSearch::Run() {
  for (size_t v = 0; v < g_.values.size(); ++v) {
    const ShardValue& x = g_.values[v];
    if (x.producer >= 0) continue;
    variants_[v] = {x.given};
    if (x.seed_kind == SeedKind::kFixed && x.seed != x.given) {
      RETURN_IF_ERROR(Reach(static_cast<int>(v), x.seed, -1));
      variants_[v] = {x.seed};
    }
  }
  Phase phase = Phase::kForward;
  for (size_t n = 0; n < g_.nodes.size(); ++n) {
    if (g_.nodes[n].node->phase != phase) {
      phase = g_.nodes[n].node->phase;
      ForgetInflated();
    }
    RETURN_IF_ERROR(Place(static_cast<int>(n)));
  }
  for (int v : g_.results) plan_.results.push_back(variants_[v][0]);
  RemoveUnused(&plan_);
  for (const Instruction& i : plan_.program) {
    if (i.kind == Instruction::kConvert) plan_.cost += planner_.Cost(i.from, i.to, g_.values[i.value].bytes);
  }
  return std::move(plan_);
}

void ShardSearch::ForgetInflated() {
  for (size_t v = 0; v < variants_.size(); ++v) {
    std::vector<PlacementId>& list = variants_[v];
    if (list.size() < 2) continue;
    // What experts read stays as they read it: gathering it again would be one exchange more for the weight
    // gradients than plans written by hand have.
    if (const int n = g_.values[v].producer; n >= 0 && !g_.nodes[n].op->routed_factor.empty()) continue;
    const double base = planner_.Shards(list[0]);
    list.erase(
        std::remove_if(list.begin(), list.end(), [&](PlacementId p) { return planner_.Shards(p) < base; }),
        list.end());
  }
}

// Conversions and clones may have left others, and even the node's own result, unused.
void ShardSearch::RemoveUnused(ShardPlan* plan) const {
  std::set<std::pair<int, PlacementId>> live;
  for (size_t i = 0; i < g_.results.size(); ++i) live.insert({g_.results[i], plan->results[i]});
  std::vector<Instruction> kept;
  for (auto i = plan->program.rbegin(); i != plan->program.rend(); ++i) {
    if (i->kind == Instruction::kConvert) {
      // A gather that was forgotten and made again has two makers: what is used below was made here.
      if (!live.erase({i->value, i->to})) continue;
      live.insert({i->value, i->from});
    } else {
      const ShardNode& n = g_.nodes[i->node];
      bool used =
          n.op->Has(kStateful) || n.treatment == Treatment::kWritten || n.treatment == Treatment::kSettled;
      for (size_t r = 0; r < n.results.size(); ++r) used |= live.erase({n.results[r], i->results[r]}) > 0;
      if (!used) continue;
      for (size_t k = 0; k < n.operands.size(); ++k) live.insert({n.operands[k], i->operands[k]});
    }
    kept.push_back(std::move(*i));
  }
  std::reverse(kept.begin(), kept.end());
  plan->program = std::move(kept);
}

// ----------------------------------------------------------------------------------------------------
// fetching values

// Cheapest way to get a value in a placement: from a variant, or by placing its cheap, linear producer anew.
ShardSearch::Fetch ShardSearch::Best(int value, PlacementId to, int depth) {
  const ShardValue& v = g_.values[value];
  Fetch best;
  best.cost = kInfinity;
  for (PlacementId p : variants_[value]) {
    const double cost = planner_.Cost(p, to, v.bytes);
    if (best.source == kNoPlacement || cost < best.cost) best.cost = cost, best.source = p;
  }
  if (best.cost == 0 || depth >= kCloneDepth || v.producer < 0) return best;
  const ShardNode& n = g_.nodes[v.producer];
  if (!n.op->cheap || n.treatment != Treatment::kSearch) return best;
  const Placement wanted = planner_.Get(to);
  if (!wanted.partial.empty()) return best;

  const FactorTerm& term = n.rule->results[0];
  FactorAssignment assignment(n.rule->num_factors());
  for (size_t d = 0; d < term.size(); ++d) {
    if (wanted.dims[d].empty()) continue;
    if (term[d].empty()) return best;
    const FactorId f = term[d][0];  // compound dims: only their major factor
    assignment[f] = wanted.dims[d];
    if (n.rule->fixed[f] || n.extents[f] % mesh_.Size(wanted.dims[d])) return best;
    if (n.rule->factors[f] != n.op->routed_factor) continue;
    for (AxisId a : wanted.dims[d]) {
      if (!MayRoute(n, a)) return best;
    }
  }
  if (!n.op->routed_factor.empty()) {
    const FactorId routed = static_cast<FactorId>(n.rule->Find(n.op->routed_factor));
    for (AxisId a : axes_) {
      const AxisList& over = assignment[routed];
      if (MustRoute(n, a) && std::find(over.begin(), over.end(), a) == over.end()) return best;
    }
  }
  Placement made;
  if (!DimsOf(n, term, assignment, &made) || made.dims != wanted.dims) return best;
  Fetch clone;
  for (size_t i = 0; i < n.operands.size(); ++i) {
    Placement p;
    if (!DimsOf(n, n.rule->operands[i], assignment, &p)) return best;
    clone.operands.push_back(planner_.Intern(p));
    clone.cost += Best(n.operands[i], clone.operands.back(), depth + 1).cost;
    if (clone.cost >= best.cost) return best;
  }
  clone.assignment = std::move(assignment);
  return clone;
}

absl::Status ShardSearch::Get(int value, PlacementId to, int node, int depth) {
  if (Contains(variants_[value], to)) return absl::OkStatus();
  Fetch fetch = Best(value, to, depth);
  const ShardValue& v = g_.values[value];
  if (fetch.cost == kInfinity) {
    return absl::InvalidArgumentError(absl::StrCat(
        "%", v.value.name(), " is needed as ", PlacementToString(planner_.Get(to), mesh_),
        ", and no conversion gives that from ", PlacementToString(planner_.Get(variants_[value][0]), mesh_)));
  }
  if (fetch.source == kNoPlacement) {
    const ShardNode& n = g_.nodes[v.producer];
    for (size_t i = 0; i < n.operands.size(); ++i) {
      RETURN_IF_ERROR(Get(n.operands[i], fetch.operands[i], node, depth + 1));
    }
    Instruction clone;
    clone.kind = Instruction::kClone;
    clone.node = v.producer;
    clone.assignment = std::move(fetch.assignment);
    clone.operands = std::move(fetch.operands);
    clone.results = {to};
    clone.user = node;
    plan_.program.push_back(std::move(clone));
    variants_[value].push_back(to);
    return absl::OkStatus();
  }
  for (const ConversionPhase& phase : planner_.Plan(fetch.source, to).phases) {
    const PlacementId reached = planner_.Intern(phase.to);
    if (Contains(variants_[value], reached)) continue;
    Instruction convert;
    convert.kind = Instruction::kConvert;
    convert.user = node;
    convert.value = value;
    convert.from = planner_.Intern(phase.from);
    convert.to = reached;
    plan_.program.push_back(std::move(convert));
    variants_[value].push_back(reached);
  }
  return absl::OkStatus();
}

absl::Status ShardSearch::Reach(int value, PlacementId to, int node) {
  RETURN_IF_ERROR(Get(value, to, node));
  std::vector<PlacementId>& list = variants_[value];
  list.erase(std::find(list.begin(), list.end(), to));
  list.insert(list.begin(), to);
  return absl::OkStatus();
}

// ------------------------------------------------------------------------------------------------------
// placing nodes

absl::Status ShardSearch::Place(int n) {
  absl::Status status;
  switch (g_.nodes[n].treatment) {
    case Treatment::kSearch:
      status = PlaceSearched(n);
      break;
    case Treatment::kAccumulate:
      status = PlaceAccumulate(n);
      break;
    case Treatment::kSettled:
      status = PlaceSettled(n);
      break;
    case Treatment::kWritten:
      status = PlaceWritten(n);
      break;
  }
  const Node& node = *g_.nodes[n].node;
  return Annotate(status, absl::StrCat(node.op_name(), " %",
                                       node.num_results() > 0 ? node.result_name() : std::string("?")));
}

absl::Status ShardSearch::Commit(int n, const FactorAssignment& assignment,
                                 const std::vector<PlacementId>& operands,
                                 const std::vector<PlacementId>& results) {
  const ShardNode& node = g_.nodes[n];
  for (size_t i = 0; i < node.operands.size(); ++i) RETURN_IF_ERROR(Get(node.operands[i], operands[i], n));
  Instruction op;
  op.node = n;
  op.assignment = assignment;
  op.operands = operands;
  op.results = results;
  plan_.program.push_back(std::move(op));
  for (size_t r = 0; r < node.results.size(); ++r) {
    const int v = node.results[r];
    variants_[v] = {results[r]};
    if (g_.values[v].seed_kind == SeedKind::kNone) continue;
    const PlacementId seed = SeedOf(g_.values[v], results[r]);
    if (seed == results[r]) continue;
    RETURN_IF_ERROR(Get(v, seed, n));
    variants_[v] = {seed, results[r]};  // the seed becomes the canonical placement
  }
  return absl::OkStatus();
}

// The state decides. An open one takes whatever sums the first value added to it has.
absl::Status ShardSearch::PlaceAccumulate(int n) {
  const ShardNode& node = g_.nodes[n];
  const int state = node.operands[0], added = node.operands[1];
  const std::string& name = g_.values[state].open_state;
  PlacementId p = variants_[state][0];
  const ShardValue& x = g_.values[added];
  if (x.seed_kind == SeedKind::kOpen && !plan_.decided.count(name)) {
    p = SeedOf(x, variants_[added][0]);
    plan_.decided[name] = p;
    if (x.settled != kNoPlacement) plan_.deferred += planner_.Cost(p, x.settled, x.bytes) / microbatches_;
  } else if (plan_.decided.count(name)) {
    p = plan_.decided[name];
  }
  if (x.seed_kind == SeedKind::kOpen) {  // a later value that could have stayed partial over more axes
    Placement both = planner_.Get(p);
    const Placement other = planner_.Get(SeedOf(x, variants_[added][0]));
    for (const Partial& q : other.partial) both.AddPartial(q);
    if (planner_.Intern(both) != p) plan_.wanted[name] = planner_.Intern(both);
  }
  variants_[state] = {p};
  const Placement placement = planner_.Get(p);
  FactorAssignment assignment(node.rule->num_factors());
  for (size_t d = 0; d < node.rule->results[0].size(); ++d) {
    for (FactorId f : node.rule->results[0][d]) assignment[f] = placement.dims[d];
  }
  return Commit(n, assignment, {p, p}, {p});
}

absl::Status ShardSearch::PlaceSettled(int n) {
  const ShardNode& node = g_.nodes[n];
  Placement p = planner_.Get(variants_[node.operands[0]][0]);
  p.partial.clear();
  FactorAssignment assignment(node.rule->num_factors());
  for (size_t d = 0; d < node.rule->results[0].size(); ++d) {
    for (FactorId f : node.rule->results[0][d]) assignment[f] = p.dims[d];
  }
  const PlacementId id = planner_.Intern(p);
  return Commit(n, assignment, {id}, {id});
}

absl::Status ShardSearch::PlaceWritten(int n) {
  const ShardNode& node = g_.nodes[n];
  return Commit(n, node.node->assignment, node.written_operands, node.written_results);
}

absl::Status ShardSearch::PlaceSearched(int n) {
  const ShardNode& node = g_.nodes[n];
  const std::vector<int64_t> key = KeyOf(node);
  auto it = memo_.decisions.find(key);
  if (it == memo_.decisions.end()) {
    it = memo_.decisions.emplace(key, Decide(node)).first;
  } else {
    ++memo_.hits;
  }
  if (!it->second.found) return NoPlacement(node);
  const ShardMemo::Decision decision = it->second;
  return Commit(n, decision.assignment, decision.operands, decision.results);
}

absl::Status ShardSearch::NoPlacement(const ShardNode& n) const {
  std::vector<std::string> have;
  for (size_t i = 0; i < n.operands.size(); ++i) {
    const PlacementId stationary = Stationary(n, static_cast<int>(i));
    const PlacementId p = stationary != kNoPlacement ? stationary : variants_[n.operands[i]][0];
    have.push_back(absl::StrCat("%", g_.values[n.operands[i]].value.name(), " ",
                                PlacementToString(planner_.Get(p), mesh_),
                                stationary != kNoPlacement ? " fixed" : ""));
  }
  std::vector<std::string> extents;
  for (int f = 0; f < n.rule->num_factors(); ++f) {
    extents.push_back(absl::StrCat(n.rule->factors[f], "=", n.extents[f]));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "no legal placement by the rule '", n.rule->ToString(), "' with ", absl::StrJoin(extents, " "),
      "; operands: ", absl::StrJoin(have, ", "),
      "; a factor must divide over its axes, and a minor factor of a product may be sharded only when its "
      "majors are exhausted"));
}

PlacementId ShardSearch::Stationary(const ShardNode& n, int operand) const {
  const ShardValue& v = g_.values[n.operands[operand]];
  return v.parameter && n.node->phase == Phase::kUpdate ? kNoPlacement : v.stationary;
}

// Where a produced value goes.
PlacementId ShardSearch::SeedOf(const ShardValue& v, PlacementId produced) {
  if (v.seed_kind == SeedKind::kFixed) return v.seed;
  Placement target = planner_.Get(v.seed);
  const Placement made = planner_.Get(produced);
  for (const Partial& p : made.partial) {
    if (p.kind == Reduction::kSum && target.Role(p.axis) == Placement::kNone) target.AddPartial(p);
  }
  return planner_.Intern(target);
}

double ShardSearch::SeedCost(const ShardValue& v, PlacementId produced) {
  const PlacementId seed = SeedOf(v, produced);
  double cost = planner_.Cost(produced, seed, v.bytes);
  if (v.seed_kind == SeedKind::kOpen && v.settled != kNoPlacement)
    cost += planner_.Cost(seed, v.settled, v.bytes) / microbatches_;
  return cost;
}

std::vector<int64_t> ShardSearch::KeyOf(const ShardNode& n) const {
  std::vector<int64_t> key = {n.signature,
                              policy_.dispatcher * 4 + policy_.debt_doubles * 2 + policy_.hints,
                              static_cast<int64_t>(n.node->phase),
                              static_cast<int64_t>(g_.residual_axes),
                              static_cast<int64_t>(g_.routed_axes),
                              static_cast<int64_t>(microbatches_)};
  for (size_t i = 0; i < n.operands.size(); ++i) {
    key.push_back(Stationary(n, static_cast<int>(i)));
    AddOperandKey(n.operands[i], 0, &key);
  }
  key.push_back(-2);
  if (n.hint >= 0 && (n.strong_hint || policy_.hints)) {
    const ShardValue& h = g_.values[n.hint];
    key.push_back(h.stationary != kNoPlacement ? h.stationary : variants_[n.hint][0]);
  }
  for (int r : n.results) {
    const ShardValue& v = g_.values[r];
    key.insert(key.end(), {-3, static_cast<int64_t>(v.seed_kind), v.seed, v.settled, v.gradient_of,
                           static_cast<int64_t>(v.blocked)});
  }
  return key;
}

void ShardSearch::AddOperandKey(int value, int depth, std::vector<int64_t>* key) const {
  const ShardValue& v = g_.values[value];
  key->push_back(static_cast<int64_t>(variants_[value].size()));
  for (PlacementId p : variants_[value]) key->push_back(p);
  if (depth >= kCloneDepth || v.producer < 0) return;
  const ShardNode& n = g_.nodes[v.producer];
  if (!n.op->cheap || n.treatment != Treatment::kSearch) return;
  key->push_back(-4 - n.signature);
  for (int o : n.operands) AddOperandKey(o, depth + 1, key);
}

}  // namespace moe::passes
