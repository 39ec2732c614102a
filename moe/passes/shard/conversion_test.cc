#include "moe/passes/shard/conversion.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "moe/base/status_matchers.h"

namespace moe::passes {
namespace {

// A dense array of small integers (sums are exact).
struct Array {
  std::vector<int64_t> dims;
  std::vector<int64_t> data;
  static Array Zeros(std::vector<int64_t> dims) {
    int64_t n = 1;
    for (int64_t d : dims) n *= d;
    return {std::move(dims), std::vector<int64_t>(n, 0)};
  }
  // Views as [outer, dims[d], inner].
  int64_t Inner(int d) const {
    int64_t n = 1;
    for (size_t i = d + 1; i < dims.size(); ++i) n *= dims[i];
    return n;
  }
  int64_t Outer(int d) const { return static_cast<int64_t>(data.size()) / (Inner(d) * dims[d]); }
};

Array Take(const Array& x, int d, int64_t index) {
  std::vector<int64_t> dims = x.dims;
  dims[d] = 1;
  Array y = Array::Zeros(dims);
  const int64_t inner = x.Inner(d);
  for (int64_t o = 0; o < x.Outer(d); ++o) {
    for (int64_t i = 0; i < inner; ++i) y.data[o * inner + i] = x.data[(o * x.dims[d] + index) * inner + i];
  }
  return y;
}

Array Concatenate(const std::vector<Array>& xs, int d) {  // parts of extent 1
  std::vector<int64_t> dims = xs[0].dims;
  dims[d] = static_cast<int64_t>(xs.size());
  Array y = Array::Zeros(dims);
  const int64_t inner = xs[0].Inner(d);
  for (int64_t o = 0; o < xs[0].Outer(d); ++o) {
    for (size_t k = 0; k < xs.size(); ++k) {
      for (int64_t i = 0; i < inner; ++i) y.data[(o * dims[d] + k) * inner + i] = xs[k].data[o * inner + i];
    }
  }
  return y;
}

Array Combine(const std::vector<Array>& xs, bool max) {
  Array y = xs[0];
  for (size_t k = 1; k < xs.size(); ++k) {
    for (size_t i = 0; i < y.data.size(); ++i) {
      y.data[i] = max ? std::max(y.data[i], xs[k].data[i]) : y.data[i] + xs[k].data[i];
    }
  }
  return y;
}

std::vector<int64_t> LocalDims(const std::vector<int64_t>& dims, const Placement& p, const Mesh& mesh) {
  std::vector<int64_t> out;
  for (size_t d = 0; d < dims.size(); ++d) out.push_back(dims[d] / mesh.Size(p.dims[d]));
  return out;
}

void ForEachIndex(const std::vector<int64_t>& dims,
                  const std::function<void(const std::vector<int64_t>&)>& fn) {
  std::vector<int64_t> index(dims.size(), 0);
  while (true) {
    fn(index);
    int d = static_cast<int>(dims.size()) - 1;
    while (d >= 0 && ++index[d] == dims[d]) index[d--] = 0;
    if (d < 0) return;
  }
}

int64_t Flat(const std::vector<int64_t>& index, const std::vector<int64_t>& dims) {
  int64_t n = 0;
  for (size_t d = 0; d < dims.size(); ++d) n = n * dims[d] + index[d];
  return n;
}

// A rank's part of a value whose element depends on the global index and the coordinates of the partial axes
// only.
Array Initial(const std::vector<int64_t>& dims, const Placement& p, const Mesh& mesh, int64_t rank) {
  const std::vector<int64_t> local = LocalDims(dims, p, mesh);
  Array x = Array::Zeros(local);
  uint64_t salt = 1;
  for (const Partial& q : p.partial) salt = salt * 31 + 7 * mesh.Coordinate(rank, q.axis) + 3;
  ForEachIndex(local, [&](const std::vector<int64_t>& index) {
    uint64_t h = salt;
    for (size_t d = 0; d < dims.size(); ++d)
      h = h * 1000003 + mesh.Index(rank, p.dims[d]) * local[d] + index[d];
    x.data[Flat(index, local)] = static_cast<int64_t>((h ^ (h >> 29)) % 1009) - 504;
  });
  return x;
}

// What a conversion means, element by element: the oracle.
std::vector<Array> Meaning(const std::vector<int64_t>& dims, const Placement& from, const Placement& to,
                           const Mesh& mesh, const std::vector<Array>& in) {
  const std::vector<int64_t> src = LocalDims(dims, from, mesh), dst = LocalDims(dims, to, mesh);
  std::vector<int64_t> stride(mesh.num_axes(), 1);
  for (int a = mesh.num_axes() - 2; a >= 0; --a) stride[a] = stride[a + 1] * mesh.size(a + 1);
  std::vector<Array> out;
  for (int64_t r = 0; r < mesh.num_ranks(); ++r) {
    Array y = Array::Zeros(dst);
    AxisList reduced;
    bool max = false, zeroed = false;
    for (const Partial& p : from.partial) {
      if (to.Role(p.axis) == from.Role(p.axis)) continue;
      reduced.push_back(p.axis);
      max = p.kind == Reduction::kMax;
    }
    for (const Partial& p : to.partial) {
      zeroed |= from.Role(p.axis) == Placement::kNone && mesh.Coordinate(r, p.axis) != 0;
    }
    ForEachIndex(dst, [&](const std::vector<int64_t>& index) {
      if (zeroed) return;
      int64_t owner = r;
      std::vector<int64_t> there(dims.size());
      for (size_t d = 0; d < dims.size(); ++d) {
        const int64_t global = mesh.Index(r, to.dims[d]) * dst[d] + index[d];
        there[d] = global % src[d];
        int64_t block = global / src[d];
        for (int k = static_cast<int>(from.dims[d].size()) - 1; k >= 0; --k) {
          const AxisId a = from.dims[d][k];
          owner += (block % mesh.size(a) - mesh.Coordinate(r, a)) * stride[a];
          block /= mesh.size(a);
        }
      }
      int64_t sum = 0;
      bool first = true;
      for (int64_t q : mesh.Group(owner, reduced)) {
        const int64_t v = in[q].data[Flat(there, src)];
        sum = first ? v : max ? std::max(sum, v) : sum + v;
        first = false;
      }
      y.data[Flat(index, dst)] = sum;
    });
    out.push_back(std::move(y));
  }
  return out;
}

// Runs the steps of one phase on the refined view, one axis at a time.
std::vector<Array> Execute(const ConversionPhase& phase, const Mesh& mesh, std::vector<Array> x) {
  const size_t rank = phase.from.dims.size();
  if (phase.steps[0].kind == StepKind::kPermute) {
    std::vector<Array> out = x;
    for (int64_t r = 0; r < mesh.num_ranks(); ++r) {
      for (int64_t q = 0; q < mesh.num_ranks(); ++q) {
        bool mine = true;
        for (AxisId a = 0; a < mesh.num_axes(); ++a) {
          const auto& moves = phase.steps[0].moves;
          const bool moves_axis =
              std::any_of(moves.begin(), moves.end(), [&](const Move& m) { return m.axis == a; });
          mine &= moves_axis || mesh.Coordinate(q, a) == mesh.Coordinate(r, a);
        }
        for (size_t d = 0; d < rank; ++d) {
          mine &= mesh.Index(q, phase.from.dims[d]) == mesh.Index(r, phase.to.dims[d]);
        }
        if (mine) out[r] = x[q];
      }
    }
    return out;
  }
  std::vector<int64_t> refined, coarse;
  std::vector<int> dim_of;
  std::map<std::pair<int, AxisId>, int> position;
  for (size_t d = 0; d < rank; ++d) {
    const AxisList &f = phase.from.dims[d], &t = phase.to.dims[d];
    size_t n = 0;
    while (n < f.size() && n < t.size() && f[n] == t[n]) ++n;
    int64_t rest = x[0].dims[d];
    for (size_t i = n; i < f.size(); ++i) {
      position[{d, f[i]}] = static_cast<int>(refined.size());
      refined.push_back(1), dim_of.push_back(d);
    }
    for (size_t i = n; i < t.size(); ++i) {
      position[{d, t[i]}] = static_cast<int>(refined.size());
      refined.push_back(mesh.size(t[i])), dim_of.push_back(d);
      rest /= mesh.size(t[i]);
    }
    refined.push_back(rest), dim_of.push_back(d);
  }
  for (Array& a : x) a.dims = refined;
  for (const ConversionStep& step : phase.steps) {
    for (const Move& m : step.moves) {
      std::vector<Array> next;
      for (int64_t r = 0; r < mesh.num_ranks(); ++r) {
        const int64_t c = mesh.Coordinate(r, m.axis);
        std::vector<Array> group;
        for (int64_t q : mesh.Group(r, {m.axis})) group.push_back(x[q]);
        const int to = m.to >= 0 ? position.at({m.to, m.axis}) : -1;
        const int from = m.from >= 0 ? position.at({m.from, m.axis}) : -1;
        Array y;
        switch (step.kind) {
          case StepKind::kZero:
            y = c == 0 ? x[r] : Array::Zeros(x[r].dims);
            break;
          case StepKind::kSlice:
            y = Take(x[r], to, c);
            break;
          case StepKind::kReduceScatter:
            y = Take(Combine(group, m.from == Placement::kMax), to, c);
            break;
          case StepKind::kAllReduce:
            y = Combine(group, m.from == Placement::kMax);
            break;
          case StepKind::kAllGather:
            y = Concatenate(group, from);
            break;
          case StepKind::kAllToAll:
            for (Array& g : group) g = Take(g, to, c);
            y = Concatenate(group, from);
            break;
          case StepKind::kPermute:
          case StepKind::kRotate:
            ADD_FAILURE() << "permute among other steps";
        }
        next.push_back(std::move(y));
      }
      x = std::move(next);
    }
  }
  for (Array& a : x) {
    std::vector<int64_t> dims(rank, 1);
    for (size_t i = 0; i < dim_of.size(); ++i) dims[dim_of[i]] *= a.dims[i];
    a.dims = dims;
  }
  return x;
}

// All placements of the axes of `mesh` on a value of `rank` dims, in all orders.
std::vector<Placement> AllPlacements(const Mesh& mesh, int rank, bool with_max) {
  std::vector<Placement> out = {Placement::Replicated(rank)};
  for (AxisId a = 0; a < mesh.num_axes(); ++a) {
    std::vector<Placement> next;
    for (const Placement& p : out) {
      next.push_back(p);
      for (Reduction k : {Reduction::kSum, Reduction::kMax}) {
        if (k == Reduction::kMax && !with_max) continue;
        next.push_back(p);
        next.back().AddPartial({a, k});
      }
      for (int d = 0; d < rank; ++d) {
        for (size_t i = 0; i <= p.dims[d].size(); ++i) {
          next.push_back(p);
          next.back().dims[d].insert(next.back().dims[d].begin() + i, a);
        }
      }
    }
    out = std::move(next);
  }
  return out;
}

void CheckAll(const Mesh& mesh, const std::vector<int64_t>& dims, bool with_max, int stride) {
  ConversionPlanner planner(mesh);
  const std::vector<Placement> all = AllPlacements(mesh, static_cast<int>(dims.size()), with_max);
  int64_t pair = 0;
  for (const Placement& from : all) {
    std::vector<Array> in;
    for (int64_t r = 0; r < mesh.num_ranks(); ++r) in.push_back(Initial(dims, from, mesh, r));
    for (const Placement& to : all) {
      if (pair++ % stride) continue;
      const Conversion& c = planner.Plan(from, to);
      bool legal = true;
      bool sum = false, max = false;
      for (AxisId a = 0; a < mesh.num_axes(); ++a) {
        const int f = from.Role(a), t = to.Role(a);
        if (t < -1 && f != t && f != Placement::kNone) legal = false;
        if (f == t) continue;
        sum |= f == Placement::kSum || t == Placement::kSum;
        max |= f == Placement::kMax || t == Placement::kMax;
      }
      ASSERT_EQ(c.legal, legal) << PlacementToString(from, mesh) << " -> " << PlacementToString(to, mesh);
      if (!legal || (sum && max)) continue;
      std::vector<Array> x = in;
      Placement at = from;
      for (const ConversionPhase& phase : c.phases) {
        ASSERT_EQ(phase.from, at);
        x = Execute(phase, mesh, std::move(x));
        at = phase.to;
        // Each phase is itself what the planner would do: it can become a node of its own and be planned
        // again.
        const Conversion& again = planner.Plan(phase.from, phase.to);
        ASSERT_EQ(again.phases.size(), 1) << PlacementToString(phase.from, mesh);
        ASSERT_EQ(again.phases[0].steps, phase.steps);
      }
      ASSERT_EQ(at, to);
      const std::vector<Array> want = Meaning(dims, from, to, mesh, in);
      for (int64_t r = 0; r < mesh.num_ranks(); ++r) {
        ASSERT_EQ(x[r].dims, want[r].dims);
        ASSERT_EQ(x[r].data, want[r].data)
            << PlacementToString(from, mesh) << " -> " << PlacementToString(to, mesh) << " rank " << r;
      }
    }
  }
}

TEST(Conversion, EveryPlanOnTwoDimsIsExact) {
  CheckAll(Mesh({{"c", 2}, {"b", 3}, {"a", 2}}), {12, 12}, /*with_max=*/true, 1);
}

TEST(Conversion, EveryPlanOnThreeDimsIsExact) {
  CheckAll(Mesh({{"c", 2}, {"b", 2}, {"a", 2}}), {8, 8, 8}, /*with_max=*/false, 1);
}

TEST(Conversion, FourAxesSampled) {
  CheckAll(Mesh({{"d", 2}, {"c", 2}, {"b", 2}, {"a", 2}}), {16, 16}, /*with_max=*/false, 53);
}

class ConversionTest : public ::testing::Test {
 protected:
  // "b.a - | a" : dims separated by spaces, then partial axes.
  Placement P(const std::string& dims, const std::string& partial = "") {
    Placement p;
    std::string word;
    for (char ch : dims + " ") {
      if (ch != ' ') {
        word += ch;
        continue;
      }
      if (word.empty()) continue;
      p.dims.push_back(word == "-" ? AxisList() : *mesh_.ParseAxes(word));
      word.clear();
    }
    for (char ch : partial) p.AddPartial({*mesh_.Find(std::string(1, ch)), Reduction::kSum});
    return p;
  }
  std::string Steps(const Placement& from, const Placement& to) {
    std::string out;
    for (const ConversionPhase& phase : planner_.Plan(from, to).phases) {
      out += (out.empty() ? "" : " | ") + PrintSteps(phase.steps, mesh_);
    }
    return out;
  }
  Mesh mesh_{{{"c", 2}, {"b", 4}, {"a", 2}}, {{"tp", {2}}, {"ep", {1, 2}}}};
  ConversionPlanner planner_{mesh_};
};

TEST_F(ConversionTest, TextbookSteps) {
  EXPECT_EQ(Steps(P("-", "a"), P("-")), "all_reduce a:sum>-");
  EXPECT_EQ(Steps(P("- -", "a"), P("- a")), "reduce_scatter a:sum>1");
  EXPECT_EQ(Steps(P("a -"), P("- -")), "all_gather a:0>-");
  EXPECT_EQ(Steps(P("a -"), P("- a")), "all_to_all a:0>1");
  EXPECT_EQ(Steps(P("- -"), P("a -")), "slice a:->0");
  EXPECT_EQ(Steps(P("-"), P("-", "a")), "zero a:->sum");
}

TEST_F(ConversionTest, TokensToExpertsIsOneAllToAll) {
  // [experts, batch] with the staying axis major: two axes move in one collective.
  EXPECT_EQ(Steps(P("- c.b.a"), P("b.a c")), "all_to_all b:1>0 a:1>0");
  // Replicated over a part of ep: that part is sliced first, which costs nothing.
  EXPECT_EQ(Steps(P("- c.b"), P("a.b c")), "slice a:->0 | all_to_all b:1>0");
  // In the worse order the intermediate is strided, hence one node of two steps.
  EXPECT_EQ(Steps(P("- c.b"), P("b.a c")), "slice a:->0; all_to_all b:1>0");
}

TEST_F(ConversionTest, OrderOfAxesIsAPermute) {
  EXPECT_EQ(Steps(P("b.a -"), P("a.b -")), "permute a:0>0 b:0>0");
  EXPECT_EQ(Steps(P("b.a -"), P("a.b c")), "permute a:0>0 b:0>0 | slice c:->1");
  // Losing the major axis goes through the whole value, which other uses may share.
  EXPECT_EQ(Steps(P("b.a -"), P("a -")), "all_gather b:0>- a:0>- | slice a:->0");
}

TEST_F(ConversionTest, Illegal) {
  EXPECT_FALSE(planner_.Plan(P("a -"), P("- -", "a")).legal);
  Placement max = P("-");
  max.AddPartial({2, Reduction::kMax});
  EXPECT_FALSE(planner_.Plan(max, P("-", "a")).legal);
  EXPECT_FALSE(planner_.Plan(P("-", "a"), max).legal);
  EXPECT_EQ(planner_.Cost(planner_.Intern(max), planner_.Intern(P("-", "a")), 8),
            std::numeric_limits<double>::infinity());
}

TEST_F(ConversionTest, CostIsRingBytesOfTheElementType) {
  const Type x(DType::kF32, {16, 64}), y(DType::kF64, {16, 64});
  const double bytes = ConversionPlanner::GlobalBytes(x);
  EXPECT_EQ(bytes, 16 * 64 * 4);
  EXPECT_EQ(ConversionPlanner::GlobalBytes(y), 2 * bytes);
  EXPECT_EQ(planner_.Plan(P("- -", "b"), P("- -")).Cost(bytes), 2 * bytes * 3 / 4 + 1);
  EXPECT_EQ(planner_.Plan(P("- -", "b"), P("b -")).Cost(bytes), bytes * 3 / 4 + 1);
  EXPECT_EQ(planner_.Plan(P("b -"), P("- -")).Cost(bytes), bytes * 3 / 4 + 1);
  EXPECT_EQ(planner_.Plan(P("c.b -"), P("- -")).Cost(bytes), bytes * 7 / 8 + 1);
  EXPECT_EQ(planner_.Plan(P("b -"), P("- b")).Cost(bytes), bytes / 4 * 3 / 4 + 1);
  EXPECT_EQ(planner_.Plan(P("- -"), P("- b")).Cost(bytes), 0);
}

// Axis c leaves the node, over links a tenth as fast: bytes count ten times, and a reduction of both levels
// as much as it does in two.
TEST_F(ConversionTest, WhatLeavesANodeCostsMore) {
  const Mesh nodes({{"c", 2}, {"b", 4}, {"a", 2}}, {{"node", {1, 2}}});
  cost::Target t;
  t.link_bytes_per_second = 100, t.node_bytes_per_second = 10;
  ConversionPlanner levels(nodes, t), flat(nodes, t, /*two_levels=*/false);
  const double bytes = 1 << 20;
  for (ConversionPlanner* planner : {&levels, &flat}) {
    EXPECT_EQ(planner->Plan(P("b -"), P("- -")).Cost(bytes), bytes * 3 / 4 + 1);
    EXPECT_EQ(planner->Plan(P("c -"), P("- -")).Cost(bytes), 10 * bytes / 2 + 1);
  }
  EXPECT_DOUBLE_EQ(flat.Plan(P("- -", "cb"), P("- -")).Cost(bytes), 10 * 2 * bytes * 7 / 8 + 1);
  EXPECT_DOUBLE_EQ(levels.Plan(P("- -", "cb"), P("- -")).Cost(bytes),
                   2 * bytes * 3 / 4 + 10 * 2 * (bytes / 4) / 2 + 1);
}

TEST_F(ConversionTest, Description) {
  EXPECT_EQ(DescribeConversion(P("- c.b.a"), P("b.a c"), mesh_, {"experts", "batch"}),
            "batch@ep -> experts@ep");
  EXPECT_EQ(DescribeConversion(P("- -", "a"), P("- a"), mesh_, {}), "partial sum@tp -> dim 1@tp");
  EXPECT_EQ(DescribeConversion(P("a -"), P("- -"), mesh_, {"sequence"}), "sequence@tp -> whole");
}

}  // namespace
}  // namespace moe::passes
