#include "moe/strategy/fold.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/strategy/needs.h"
#include "moe/strategy/word.h"

namespace moe::strategy {
namespace {

// Degrees of the ranks of one stage, and where they cut the rank number.
struct Degrees {
  int64_t tp = 1, cp = 1, dp = 1, etp = 1, ep = 1, edp = 1;
  int64_t kv_heads = 0;
  int64_t zero_dp = 0, expert_zero_dp = 0;  // 0: all
  std::vector<int64_t> more_cuts;           // of strategies that share the mesh
  int64_t world() const { return tp * cp * dp; }

  // kvh: the part of tp that shards K and V; the other part, kvr, repeats them and is minor.
  int64_t kv_repeats() const { return kv_heads ? tp / std::gcd(tp, kv_heads) : 1; }

  std::vector<int64_t> Cuts(bool edp_inside_ep = false) const {
    std::vector<int64_t> cuts = {
        1, tp, tp * cp, world(), etp, etp * (edp_inside_ep ? edp : ep), etp * ep * edp, kv_repeats()};
    if (zero_dp) cuts.push_back(tp * zero_dp);
    if (expert_zero_dp) cuts.push_back(etp * ep * expert_zero_dp);
    cuts.insert(cuts.end(), more_cuts.begin(), more_cuts.end());
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    return cuts;
  }

  // What is wrong, or nothing.
  std::optional<std::string> Problem(bool edp_inside_ep = false) const {
    if (etp * ep * edp != world()) {
      return absl::StrCat("etp x ep = ", etp * ep, " does not divide tp x cp x dp = ", world(),
                          " (the ranks of a stage, shared by attention and experts)");
    }
    if (kv_heads && kv_heads % tp && tp % kv_heads) {
      return absl::StrCat("tp = ", tp, " and ", kv_heads, " key-value heads: neither divides the other");
    }
    if (zero_dp && (dp * cp) % zero_dp) {
      return absl::StrCat("zero_dp = ", zero_dp, " does not divide dp x cp = ", dp * cp,
                          ", the ranks over which dense state can be sharded");
    }
    if (expert_zero_dp && edp % expert_zero_dp) {
      return absl::StrCat("expert_zero_dp = ", expert_zero_dp, " does not divide edp = ", edp,
                          ", the ranks over which expert state can be sharded");
    }
    const std::vector<int64_t> cuts = Cuts(edp_inside_ep);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      if (cuts[i + 1] % cuts[i]) {
        return absl::StrCat("attention and experts cut the ranks at {", absl::StrJoin(cuts, ", "), "}, and ",
                            cuts[i], " does not divide ", cuts[i + 1]);
      }
    }
    return std::nullopt;
  }
};

Degrees DegreesOf(const Strategy& s, int64_t kv_heads) {
  Degrees d;
  d.tp = s.tp, d.cp = s.cp, d.dp = s.dp, d.etp = s.etp, d.ep = s.ep;
  d.edp = std::max<int64_t>(1, d.world() / (d.etp * d.ep));
  d.kv_heads = s.kv_axis ? kv_heads : 0;
  d.zero_dp = s.zero_dp;
  d.expert_zero_dp = s.expert_zero_dp;
  return d;
}

// Nodes begin at multiples of devices_per_node, stages at multiples of their ranks: what is inside a node
// everywhere begins at multiples of both. The largest such cut that keeps the chain, so that the axes below
// it are inside.
int64_t NodeCut(const Strategy& s, const std::vector<int64_t>& cuts) {
  const int64_t stage = cuts.back(), inside = std::gcd(s.devices_per_node, stage);
  const std::vector<int64_t> candidates = Divisors(inside);
  for (auto c = candidates.rbegin(); c != candidates.rend(); ++c) {
    if (std::all_of(cuts.begin(), cuts.end(), [&](int64_t cut) { return cut % *c == 0 || *c % cut == 0; }))
      return *c;
  }
  return 1;
}

// Hybrid sharding of what is not sharded at all.
std::string ShardProblem(const Strategy& s) {
  const bool expert = s.expert_zero_dp > 0 && s.expert_zero_stage() == 0;
  if (!expert && (s.zero_dp == 0 || s.zero > 0)) return "";
  return expert
             ? absl::StrCat("expert_zero_dp = ", s.expert_zero_dp,
                            " says over how many ranks ZeRO shards expert state, which it does with "
                            "expert_zero = 1, 2 or 3")
             : absl::StrCat(
                   "zero_dp = ", s.zero_dp,
                   " says over how many ranks ZeRO shards dense state, which it does with zero = 1, 2 or 3");
}

// A degree that no ranks can have.
std::string DegreeProblem(const Strategy& s) {
  for (const auto& [name, degree] : {std::pair("pp", s.pp), std::pair("dp", s.dp), std::pair("cp", s.cp),
                                     std::pair("tp", s.tp), std::pair("ep", s.ep), std::pair("etp", s.etp)}) {
    if (degree < 1 || degree > kMaxDegree) {
      return absl::StrCat(name, " = ", degree, "; legal is 1 to ", kMaxDegree);
    }
  }
  return ShardProblem(s);
}

}  // namespace

std::string FoldProblem(const Strategy& s, int64_t kv_heads) {
  if (const std::string problem = DegreeProblem(s); !problem.empty()) return problem;
  return DegreesOf(s, kv_heads).Problem().value_or("");
}

absl::StatusOr<Mesh> FoldMesh(const Strategy& s, int64_t kv_heads, absl::Span<const Strategy> alongside) {
  if (const std::string problem = DegreeProblem(s); !problem.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("strategy: ", problem));
  }
  Degrees d = DegreesOf(s, kv_heads);
  for (const Strategy& other : alongside) {
    if (other.pp != s.pp || other.world() != s.world()) {
      return absl::InvalidArgumentError(
          absl::StrCat("strategies '", s.ToString(), "' and '", other.ToString(),
                       "' cannot share state: they must have the same world and the "
                       "same number of stages"));
    }
    const std::vector<int64_t> cuts = DegreesOf(other, kv_heads).Cuts();
    d.more_cuts.insert(d.more_cuts.end(), cuts.begin(), cuts.end());
  }
  if (const std::optional<std::string> problem = d.Problem()) {
    // The chain is stricter than necessary: the same degrees may fit with edp inside ep.
    const bool other_order = d.etp * d.ep * d.edp == d.world() && !d.Problem(/*edp_inside_ep=*/true);
    return absl::InvalidArgumentError(absl::StrCat(
        "strategy: ", *problem,
        other_order
            ? "; these degrees would fit in the order (etp, edp, ep), minor first, instead of (etp, ep, "
              "edp), which is not supported"
            : ""));
  }

  std::vector<int64_t> cuts = d.Cuts();
  const int64_t node = s.devices_per_node > 0 && s.devices_per_node < s.world() ? NodeCut(s, cuts) : 0;
  if (node && std::find(cuts.begin(), cuts.end(), node) == cuts.end()) {
    cuts.insert(std::upper_bound(cuts.begin(), cuts.end(), node), node);
  }
  const int atoms = static_cast<int>(cuts.size()) - 1;
  std::vector<MeshAxis> axes;
  if (s.pp > 1) axes.push_back({"pp", s.pp});
  const int first = static_cast<int>(axes.size());
  for (int i = atoms - 1; i >= 0; --i) axes.push_back({std::string(1, 'a' + i), cuts[i + 1] / cuts[i]});
  const auto span = [&](int64_t low, int64_t high) {
    AxisList list;
    for (int i = atoms - 1; i >= 0; --i) {
      if (low <= cuts[i] && cuts[i] < high) list.push_back(static_cast<AxisId>(first + atoms - 1 - i));
    }
    return list;
  };
  std::map<std::string, AxisList> aliases = {
      {"tp", span(1, d.tp)},
      {"cp", span(d.tp, d.tp * d.cp)},
      {"dp", span(d.tp * d.cp, d.world())},
      {"etp", span(1, d.etp)},
      {"ep", span(d.etp, d.etp * d.ep)},
      {"edp", span(d.etp * d.ep, d.world())},
      {"kvh", span(d.kv_repeats(), d.tp)},
  };
  if (d.zero_dp) aliases["shard"] = span(d.tp, d.tp * d.zero_dp);
  if (d.expert_zero_dp) aliases["expert_shard"] = span(d.etp * d.ep, d.etp * d.ep * d.expert_zero_dp);
  if (node) aliases["node"] = span(1, node);
  return Mesh(std::move(axes), aliases);
}

}  // namespace moe::strategy
