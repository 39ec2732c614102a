#include "moe/passes/shard/seeds.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/ir/state.h"

namespace moe::passes {
namespace {

bool Contains(const AxisList& list, AxisId axis) {
  return std::find(list.begin(), list.end(), axis) != list.end();
}

AxisList Join(const AxisList& a, const AxisList& b) {
  AxisList out = a;
  for (AxisId x : b) {
    if (!Contains(out, x)) out.push_back(x);
  }
  return out;
}

// Order of a token dim: axes that stay with the token first, those that move to the experts last.
AxisList Regroup(const AxisList& dp, const AxisList& etp, const AxisList& ep) {
  AxisList out = dp;
  std::stable_sort(out.begin(), out.end(), [&](AxisId a, AxisId b) {
    const auto group = [&](AxisId x) { return Contains(ep, x) ? 2 : Contains(etp, x) ? 1 : 0; };
    return group(a) < group(b);
  });
  return out;
}

bool IsExpert(const State& parameter) { return AttrString(parameter.attributes, "class") == "expert"; }

}  // namespace

bool IsPlaced(const Type& type) { return !type.placement.IsReplicated(); }

std::string AxisOrders::ToString() const {
  std::vector<std::string> words;
  if (reverse_ep) words.push_back("ep reversed");
  if (regroup_dp) words.push_back("dp regrouped");
  return words.empty() ? "as folded" : absl::StrJoin(words, ", ");
}

std::vector<AxisOrders> CandidateOrders(const Mesh& mesh, const strategy::Strategy& strategy) {
  std::vector<bool> ep = {false};
  if (strategy.ep_order == strategy::EpOrder::kReversed) {
    ep = {true};
  } else if (strategy.ep_order == strategy::EpOrder::kAuto && mesh.Alias("ep").size() > 1) {
    ep = {false, true};
  }
  const AxisList dp = mesh.Alias("dp");
  std::vector<AxisOrders> out;
  for (bool regroup : {false, true}) {
    if (regroup && Regroup(dp, mesh.Alias("etp"), mesh.Alias("ep")) == dp) continue;
    for (bool reverse : ep) out.push_back({reverse, regroup});
  }
  return out;
}

Seeds::Seeds(const Mesh& mesh, const strategy::Strategy& strategy, AxisOrders orders)
    : mesh_(mesh), strategy_(strategy) {
  tp_ = mesh.Alias("tp");
  cp_ = mesh.Alias("cp");
  dp_ = mesh.Alias("dp");
  etp_ = mesh.Alias("etp");
  ep_ = mesh.Alias("ep");
  edp_ = mesh.Alias("edp");
  kvh_ = mesh.aliases().count("kvh") ? mesh.Alias("kvh") : tp_;
  if (orders.regroup_dp) dp_ = Regroup(dp_, etp_, ep_);
  if (orders.reverse_ep) std::reverse(ep_.begin(), ep_.end());
  if (strategy.vocab_parallel) vocab_ = tp_;
  sequence_ = strategy.sequence_parallel ? Join(cp_, tp_) : cp_;
}

int Seeds::ZeroStage(const State& parameter) const {
  return IsExpert(parameter) ? strategy_.expert_zero_stage() : strategy_.zero;
}

Placement Seeds::Compute(const State& parameter) const {
  const std::map<std::string, std::vector<AxisList>> by_role = {
      {"emb", {vocab_, {}}},    {"head", {vocab_, {}}},     {"norm", {{}}},
      {"q", {{}, tp_, {}}},     {"kv", {{}, kvh_, {}}},     {"o", {tp_, {}, {}}},
      {"up", {{}, tp_}},        {"down", {tp_, {}}},        {"router", {{}, {}}},
      {"eup", {ep_, {}, etp_}}, {"edown", {ep_, etp_, {}}},
  };
  const auto it = by_role.find(AttrString(parameter.attributes, "role"));
  if (it == by_role.end() || static_cast<int>(it->second.size()) != parameter.type.rank()) {
    return parameter.type.placement;
  }
  Placement p;
  p.dims.assign(it->second.begin(), it->second.end());
  return p;
}

AxisList Seeds::DataAxes(const State& parameter) const {
  AxisList axes = IsExpert(parameter) ? edp_ : Join(dp_, cp_);
  const auto part = mesh_.aliases().find(IsExpert(parameter) ? "expert_shard" : "shard");
  if (part == mesh_.aliases().end()) return axes;
  axes.erase(std::remove_if(axes.begin(), axes.end(), [&](AxisId a) { return !Contains(part->second, a); }),
             axes.end());
  return axes;
}

Placement Seeds::Optimizer(const State& parameter) const {
  Placement p = Compute(parameter);
  if (ZeroStage(parameter) == 0) return p;
  const AxisList data = DataAxes(parameter);
  // All data axes where some dim takes them, otherwise as many of the minor ones as fit.
  for (size_t skip = 0; skip < data.size(); ++skip) {
    const AxisList axes(data.begin() + skip, data.end());
    for (int d = 0; d < parameter.type.rank(); ++d) {
      const int64_t shards = mesh_.Size(p.dims[d]) * mesh_.Size(axes);
      if (parameter.type.dims[d] % shards) continue;
      p.dims[d].insert(p.dims[d].end(), axes.begin(), axes.end());
      return p;
    }
  }
  return p;
}

Placement Seeds::Storage(const State& parameter) const {
  if (IsPlaced(parameter.type)) return parameter.type.placement;
  return ZeroStage(parameter) == 3 ? Optimizer(parameter) : Compute(parameter);
}

bool Seeds::ScattersGradient(const State& parameter) const { return ZeroStage(parameter) >= 2; }

Placement Seeds::ReplicaSum(Placement p, const Type& type) const {
  const AxisList axes = p.dims[0];
  p.dims[0].clear();
  for (const bool free : {true, false}) {  // a dim that nothing shards yet takes no change of order
    for (int d = 1; d < type.rank(); ++d) {
      if (p.dims[d].empty() != free || type.dims[d] % (mesh_.Size(p.dims[d]) * mesh_.Size(axes))) continue;
      p.dims[d].insert(p.dims[d].end(), axes.begin(), axes.end());
      return p;
    }
  }
  return p;
}

bool Seeds::KeepsCopies(const State& parameter) const {
  return ZeroStage(parameter) > 0 && DataAxes(parameter) != (IsExpert(parameter) ? edp_ : Join(dp_, cp_));
}

Placement Seeds::ResidualStream(const Type& type) const {
  Placement p = Placement::Replicated(type.rank());
  if (type.rank() > 0) p.dims[0] = dp_;
  if (type.rank() > 1) p.dims[1] = sequence_;
  return p;
}

uint64_t Seeds::RoutedAxes() const {
  uint64_t routed = 0;
  for (AxisId a : ep_) {
    if (Contains(dp_, a) || Contains(sequence_, a)) routed |= uint64_t{1} << a;
  }
  return routed;
}

Placement Seeds::Batch(const Type& type) const {
  if (IsPlaced(type)) return type.placement;
  Placement p = Placement::Replicated(type.rank());
  if (type.rank() == 1) p.dims[0] = cp_;  // positions
  if (type.rank() > 1) p.dims[0] = dp_, p.dims[1] = cp_;
  return p;
}

absl::Status Seeds::Check(const Module& module) const {
  std::set<std::string> problems;
  const auto check = [&](const Type& type, const Placement& p, absl::string_view what,
                         absl::string_view key = "") {
    for (int d = 0; d < type.rank(); ++d) {
      const int64_t n = mesh_.Size(p.dims[d]), extent = type.dims[d];
      if (extent % n == 0) continue;
      std::vector<int64_t> legal;
      for (int64_t k = 1; k <= extent && legal.size() < 12; ++k) {
        if (extent % k == 0) legal.push_back(k);
      }
      problems.insert(absl::StrCat(
          what, ": extent ", extent, " of dim ", d, " does not divide over ", mesh_.ShowSet(p.dims[d]), " = ",
          n, "; legal here: ", absl::StrJoin(legal, ", "),
          d == 0 && key == "expert" ? absl::StrCat(", or expert_slots=", (extent + n - 1) / n * n) : ""));
    }
  };
  std::set<std::string> roles;
  for (const auto& s : module.states()) {
    if (AttrString(s->attributes, "kind") != "parameter") continue;
    const std::string role = AttrString(s->attributes, "role");
    // One of each kind speaks for all layers.
    if (!role.empty() && !roles.insert(absl::StrCat(role, absl::StrJoin(s->type.dims, ","))).second) continue;
    check(s->type, Compute(*s), absl::StrCat(role.empty() ? "parameter" : role, " parameter ", s->name),
          AttrString(s->attributes, "class"));
  }
  for (const auto& f : module.functions()) {
    for (const Node* a : f->args()) {
      if (a->binding.kind != Binding::kBatch) continue;
      check(a->type(), Batch(a->type()), absl::StrCat("batch ", a->binding.name));
    }
    for (const auto& n : f->body()) {
      if (n->StringOr("tag", "") == "residual_stream")
        check(n->type(), ResidualStream(n->type()), "residual stream");
    }
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("this strategy does not fit the model; ", problems.size(),
                                                 " problem", problems.size() > 1 ? "s" : "", ":\n  ",
                                                 absl::StrJoin(problems, "\n  ")));
}

}  // namespace moe::passes
