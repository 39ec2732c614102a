#include "moe/passes/shard/conversion.h"

#include <glog/logging.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/cost/node_cost.h"

namespace moe::passes {
namespace {

constexpr double kLaunch = 1;  // bytes that launching one collective is worth

bool Contains(const AxisList& list, AxisId axis) {
  return std::find(list.begin(), list.end(), axis) != list.end();
}

size_t CommonPrefix(const AxisList& a, const AxisList& b) {
  size_t n = 0;
  while (n < a.size() && n < b.size() && a[n] == b[n]) ++n;
  return n;
}

AxisList Head(const AxisList& list, size_t n) { return AxisList(list.begin(), list.begin() + n); }

// Dims that both lose and gain axes (an axis that changes its place does both).
std::vector<int> MixedDims(const Placement& from, const Placement& to) {
  std::vector<int> mixed;
  for (size_t d = 0; d < from.dims.size(); ++d) {
    const size_t n = CommonPrefix(from.dims[d], to.dims[d]);
    if (n < from.dims[d].size() && n < to.dims[d].size()) mixed.push_back(static_cast<int>(d));
  }
  return mixed;
}

bool SameAxes(AxisList a, AxisList b) {
  std::sort(a.begin(), a.end());
  std::sort(b.begin(), b.end());
  return a == b;
}

Conversion Chain(const Conversion& a, const Conversion& b) {
  Conversion c;
  c.legal = a.legal && b.legal;
  c.per_byte = a.per_byte + b.per_byte;
  c.constant = a.constant + b.constant;
  c.phases = a.phases;
  c.phases.insert(c.phases.end(), b.phases.begin(), b.phases.end());
  return c;
}

// The placement after `moves`, on the way to `to`; none if it is strided (not every dim keeps a prefix of its
// axes).
std::optional<Placement> After(const Placement& current, const Placement& to,
                               const std::vector<Move>& moves) {
  Placement next;
  next.dims.resize(current.dims.size());
  for (size_t d = 0; d < current.dims.size(); ++d) {
    AxisList left, coming;
    for (AxisId a : current.dims[d]) {
      const bool leaves = std::any_of(moves.begin(), moves.end(), [&](const Move& m) {
        return m.axis == a && m.from == static_cast<int>(d);
      });
      if (!leaves) left.push_back(a);
    }
    if (CommonPrefix(left, current.dims[d]) != left.size()) return std::nullopt;
    for (AxisId a : to.dims[d]) {
      const bool comes = std::any_of(moves.begin(), moves.end(), [&](const Move& m) {
        return m.axis == a && m.to == static_cast<int>(d);
      });
      if (comes) coming.push_back(a);
    }
    next.dims[d] = left;
    next.dims[d].insert(next.dims[d].end(), coming.begin(), coming.end());
    if (!coming.empty() && CommonPrefix(next.dims[d], to.dims[d]) != next.dims[d].size()) return std::nullopt;
  }
  for (const Partial& p : current.partial) {
    const bool reduced = std::any_of(moves.begin(), moves.end(),
                                     [&](const Move& m) { return m.axis == p.axis && m.from < -1; });
    if (!reduced) next.AddPartial(p);
  }
  for (const Move& m : moves) {
    if (m.to == Placement::kSum) next.AddPartial({m.axis, Reduction::kSum});
    if (m.to == Placement::kMax) next.AddPartial({m.axis, Reduction::kMax});
  }
  return next;
}

StepKind KindOf(const Move& m) {
  const bool from_partial = m.from == Placement::kSum || m.from == Placement::kMax;
  if (from_partial) return m.to >= 0 ? StepKind::kReduceScatter : StepKind::kAllReduce;
  if (m.from == Placement::kNone) return m.to >= 0 ? StepKind::kSlice : StepKind::kZero;
  return m.to >= 0 ? StepKind::kAllToAll : StepKind::kAllGather;
}

}  // namespace

ConversionPlanner::ConversionPlanner(const Mesh& mesh, const cost::Target& target, bool two_levels)
    : mesh_(mesh), two_levels_(two_levels) {
  in_bytes_.link_latency_seconds = in_bytes_.node_latency_seconds = 0;
  in_bytes_.link_bytes_per_second = 1;
  in_bytes_.node_bytes_per_second = target.node_bytes_per_second / target.link_bytes_per_second;
}

PlacementId ConversionPlanner::Intern(const Placement& placement) {
  auto [it, inserted] = ids_.try_emplace(placement, static_cast<PlacementId>(placements_.size()));
  if (inserted) {
    placements_.push_back(placement);
    shards_.push_back(ShardsOf(placement));
  }
  return it->second;
}

double ConversionPlanner::ShardsOf(const Placement& placement) const {
  double n = 1;
  for (const AxisList& axes : placement.dims) n *= static_cast<double>(mesh_.Size(axes));
  return n;
}

const Conversion& ConversionPlanner::Plan(PlacementId from, PlacementId to) {
  const std::pair<PlacementId, PlacementId> key(from, to);
  if (auto it = plans_.find(key); it != plans_.end()) return *it->second;
  // Copies: planning interns further placements.
  auto plan = std::make_unique<Conversion>(Compute(Placement(Get(from)), Placement(Get(to))));
  return *plans_.emplace(key, std::move(plan)).first->second;
}

Conversion ConversionPlanner::Compute(const Placement& from, const Placement& to) {
  CHECK_EQ(from.dims.size(), to.dims.size());
  if (from == to) return {};
  for (AxisId a = 0; a < mesh_.num_axes(); ++a) {
    const int f = from.Role(a), t = to.Role(a);
    const bool to_partial = t == Placement::kSum || t == Placement::kMax;
    if (to_partial && f != t && f != Placement::kNone) return {.legal = false};
  }
  const std::vector<int> mixed = MixedDims(from, to);
  if (mixed.empty()) return Direct(from, to);

  Conversion best = ThroughMiddle(from, to);
  // Dims that only change the order of their axes may be permuted. (Where axes also leave or come, the
  // gathered middle is worth more than the bytes that a permute saves: others of the value's uses want it.)
  Placement permuted = from;
  for (int d : mixed) {
    if (!SameAxes(from.dims[d], to.dims[d])) return best;
    permuted.dims[d] = to.dims[d];
  }
  Conversion other = Chain(Permute(from, permuted), Plan(permuted, to));
  // Sizes do not matter to the choice unless they are tiny: compare the linear part, then launches.
  if (other.legal && std::pair(other.per_byte, other.constant) < std::pair(best.per_byte, best.constant))
    return other;
  return best;
}

// Mixed dims first lose what they lose, then gain what they gain. Axes bound for a mixed dim wait where they
// are, and with them what stands in their way.
Conversion ConversionPlanner::ThroughMiddle(const Placement& from, const Placement& to) {
  const size_t rank = from.dims.size();
  std::vector<size_t> prefix(rank);
  std::vector<bool> mixed(rank, false);
  for (int d : MixedDims(from, to)) mixed[d] = true;
  for (size_t d = 0; d < rank; ++d) prefix[d] = CommonPrefix(from.dims[d], to.dims[d]);

  // keep[d]: how many axes of a dim stay in the middle. For dims that only lose axes, of `from`; for dims
  // that only gain axes, of `to`; for mixed dims the common prefix.
  std::vector<size_t> keep(rank);
  for (size_t d = 0; d < rank; ++d) {
    keep[d] = mixed[d] || from.dims[d].size() > prefix[d] ? prefix[d] : to.dims[d].size();
  }
  const auto loses = [&](size_t d) { return !mixed[d] && from.dims[d].size() > prefix[d]; };
  // Where an axis arrives: in the second half of the conversion if its place is not kept.
  const auto arrives_late = [&](AxisId a) {
    const int d = to.Role(a);
    if (d < 0) return false;
    const AxisList& list = to.dims[d];
    const size_t place = std::find(list.begin(), list.end(), a) - list.begin();
    return place >= (loses(d) ? to.dims[d].size() : keep[d]);
  };
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t d = 0; d < rank; ++d) {
      if (loses(d)) {
        for (size_t i = keep[d]; i < from.dims[d].size(); ++i) {
          if (arrives_late(from.dims[d][i])) keep[d] = i + 1, changed = true;
        }
      } else if (!mixed[d]) {
        // An axis that another dim still keeps cannot be here yet.
        for (size_t i = prefix[d]; i < keep[d]; ++i) {
          const int f = from.Role(to.dims[d][i]);
          if (f < 0 || !loses(f)) continue;
          const AxisList& list = from.dims[f];
          const size_t place = std::find(list.begin(), list.end(), to.dims[d][i]) - list.begin();
          if (place < keep[f]) {
            keep[d] = i, changed = true;
            break;
          }
        }
      }
    }
  }
  Placement middle;
  middle.dims.resize(rank);
  for (size_t d = 0; d < rank; ++d) middle.dims[d] = Head(loses(d) ? from.dims[d] : to.dims[d], keep[d]);
  for (const Partial& p : to.partial) middle.AddPartial(p);
  for (const Partial& p : from.partial) {
    if (to.Role(p.axis) >= 0 && middle.Role(p.axis) == Placement::kNone) middle.AddPartial(p);
  }
  return Chain(Plan(from, middle), Plan(middle, to));
}

double ConversionPlanner::StepCostInBytes(const ConversionStep& step, double bytes) const {
  const double flat = cost::CostOfStep(step, bytes, mesh_, in_bytes_).seconds;
  if (!two_levels_) return flat;
  const std::vector<ConversionStep> levels = cost::InTwoLevels(step, 0, mesh_);
  return levels.empty() ? flat : std::min(flat, cost::CostOfSteps(levels, bytes, mesh_, in_bytes_).seconds);
}

Conversion ConversionPlanner::Direct(const Placement& from, const Placement& to) const {
  // Sum and max cannot travel in one collective.
  const std::pair<StepKind, int> order[] = {
      {StepKind::kZero, 0},
      {StepKind::kSlice, 0},
      {StepKind::kReduceScatter, Placement::kSum},
      {StepKind::kReduceScatter, Placement::kMax},
      {StepKind::kAllReduce, Placement::kSum},
      {StepKind::kAllReduce, Placement::kMax},
      {StepKind::kAllToAll, 0},
      {StepKind::kAllGather, 0},
  };
  std::vector<Move> moves;
  for (AxisId a = 0; a < mesh_.num_axes(); ++a) {
    const int f = from.Role(a), t = to.Role(a);
    if (f != t) moves.push_back({a, f, t});
  }
  Conversion c;
  std::vector<ConversionStep> steps;
  double bytes = 1 / ShardsOf(from);  // per global byte
  for (const auto& [kind, reduction] : order) {
    ConversionStep step{kind, {}};
    for (const Move& m : moves) {
      if (KindOf(m) == kind && (reduction == 0 || m.from == reduction)) step.moves.push_back(m);
    }
    if (step.moves.empty()) continue;
    c.per_byte += StepCostInBytes(step, bytes);
    bytes = cost::CostOfStep(step, bytes, mesh_, in_bytes_).bytes_after;
    if (!IsLocal(kind)) c.constant += kLaunch;
    steps.push_back(std::move(step));
  }
  Placement current = from;
  std::vector<ConversionStep> pending;
  std::vector<Move> pending_moves;
  for (size_t i = 0; i < steps.size(); ++i) {
    pending.push_back(steps[i]);
    pending_moves.insert(pending_moves.end(), steps[i].moves.begin(), steps[i].moves.end());
    const std::optional<Placement> next =
        i + 1 == steps.size() ? std::optional<Placement>(to) : After(current, to, pending_moves);
    if (!next) continue;
    c.phases.push_back({current, *next, std::move(pending)});
    current = *next;
    pending.clear();
    pending_moves.clear();
  }
  return c;
}

// Another order of axes in some dims: every rank sends its whole part to one other rank.
Conversion ConversionPlanner::Permute(const Placement& from, const Placement& to) const {
  ConversionStep step{StepKind::kPermute, {}};
  for (size_t d = 0; d < from.dims.size(); ++d) {
    const size_t n = CommonPrefix(from.dims[d], to.dims[d]);
    size_t end = to.dims[d].size();  // what stands alike at the end does not move
    while (end > n && from.dims[d][end - 1] == to.dims[d][end - 1]) --end;
    for (size_t i = n; i < end; ++i) {
      step.moves.push_back({to.dims[d][i], static_cast<int>(d), static_cast<int>(d)});
    }
  }
  Conversion c;
  c.per_byte = StepCostInBytes(step, 1 / ShardsOf(from));
  c.constant = kLaunch;
  c.phases.push_back({from, to, {std::move(step)}});
  return c;
}

std::string DescribeConversion(const Placement& from, const Placement& to, const Mesh& mesh,
                               const std::vector<std::string>& dim_names) {
  const auto dim_name = [&](int d) {
    return d < static_cast<int>(dim_names.size()) && !dim_names[d].empty() ? dim_names[d]
                                                                           : absl::StrCat("dim ", d);
  };
  const auto part = [&](int role, const AxisList& axes) -> std::string {
    if (role == Placement::kNone) return absl::StrCat("whole on ", mesh.ShowSet(axes));
    if (role == Placement::kSum) return absl::StrCat("partial sum@", mesh.ShowSet(axes));
    if (role == Placement::kMax) return absl::StrCat("partial max@", mesh.ShowSet(axes));
    return absl::StrCat(dim_name(role), "@", mesh.ShowSet(axes));
  };
  // Axes that make the same move go together, in the order that the dims give them.
  std::vector<std::pair<std::pair<int, int>, AxisList>> groups;
  const auto add = [&](AxisId a) {
    const std::pair<int, int> move(from.Role(a), to.Role(a));
    if (move.first == move.second) return;
    for (auto& [m, axes] : groups) {
      if (m == move && !Contains(axes, a)) axes.push_back(a);
      if (m == move) return;
    }
    groups.push_back({move, {a}});
  };
  for (const Placement* p : {&from, &to}) {
    for (const AxisList& axes : p->dims) {
      for (AxisId a : axes) add(a);
    }
  }
  for (AxisId a = 0; a < mesh.num_axes(); ++a) add(a);
  std::vector<std::string> words;
  for (const auto& [move, axes] : groups) {
    if (move.first == Placement::kNone) {
      words.push_back(absl::StrCat("whole -> ", part(move.second, axes)));
    } else if (move.second == Placement::kNone) {
      words.push_back(absl::StrCat(part(move.first, axes), " -> whole"));
    } else {
      words.push_back(absl::StrCat(part(move.first, axes), " -> ", part(move.second, axes)));
    }
  }
  if (words.empty()) {
    for (size_t d = 0; d < from.dims.size(); ++d) {
      if (from.dims[d] == to.dims[d]) continue;
      words.push_back(absl::StrCat(part(d, from.dims[d]), " -> ", part(d, to.dims[d])));
    }
  }
  return absl::StrJoin(words, ", ");
}

}  // namespace moe::passes
