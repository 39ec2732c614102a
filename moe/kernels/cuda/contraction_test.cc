#include "moe/kernels/cuda/contraction.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status_matchers.h"
#include "moe/kernels/loops.h"

namespace moe::kernels {
namespace {

uint64_t Seed() {
  static const uint64_t seed = std::random_device()();
  return seed;
}

// Sizes of cells, and where their rows begin.
struct Cells {
  std::vector<int64_t> sizes;
  int64_t Begin(int64_t cell) const {
    return std::accumulate(sizes.begin(), sizes.begin() + cell, int64_t{0});
  }
};

struct Problem {
  ShardingRule rule;
  std::vector<int64_t> extent;
  std::vector<int> ragged_in;
  int ragged_out = -1;
  Cells cells;
  std::vector<double> a, b;
  int64_t result_elements = 0;
};

int64_t ElementsOf(const Problem& p, const FactorTerm& term, int ragged) {
  int64_t n = 1;
  for (int d = 0; d < static_cast<int>(term.size()); ++d) {
    if (d <= ragged) continue;
    for (const FactorId f : term[d]) n *= p.extent[f];
  }
  return ragged < 0 ? n : n * p.cells.Begin(static_cast<int64_t>(p.cells.sizes.size()));
}

void Fill(Problem& p, std::mt19937_64& rng) {
  std::normal_distribution<double> normal;
  p.a.resize(ElementsOf(p, p.rule.operands[0], p.ragged_in[0]));
  p.b.resize(ElementsOf(p, p.rule.operands[1], p.ragged_in[1]));
  for (double& x : p.a) x = normal(rng);
  for (double& x : p.b) x = normal(rng);
  p.result_elements = ElementsOf(p, p.rule.results[0], p.ragged_out);
}

// By the meaning of the rule: all combinations of all factors.
std::vector<double> ByMeaning(const Problem& p) {
  const TermStrides s[3] = {StridesOf(p.rule.operands[0], p.extent, p.ragged_in[0]),
                            StridesOf(p.rule.operands[1], p.extent, p.ragged_in[1]),
                            StridesOf(p.rule.results[0], p.extent, p.ragged_out)};
  const bool ragged[3] = {p.ragged_in[0] >= 0, p.ragged_in[1] >= 0, p.ragged_out >= 0};
  std::vector<double> y(p.result_elements, 0.0);
  std::vector<int64_t> index(p.extent.size(), 0);
  const auto add = [&](int64_t row, int ragged_factor) {
    int64_t at[3];
    for (int t = 0; t < 3; ++t) {
      at[t] = ragged[t] ? row * s[t].row_elements : 0;
      for (size_t f = 0; f < index.size(); ++f) {
        if (static_cast<int>(f) != ragged_factor) at[t] += index[f] * s[t].element[f];
      }
    }
    y[at[2]] += p.a[at[0]] * p.b[at[1]];
  };
  const int with_cells = ragged[0] ? 0 : ragged[1] ? 1 : -1;
  const int ragged_factor = with_cells < 0 ? -1 : s[with_cells].ragged_factor;
  const auto visit = [&](auto& self, size_t f) -> void {
    if (f == index.size()) {
      if (with_cells < 0) return add(0, -1);
      int64_t cell = 0;
      for (size_t g = 0; g < index.size(); ++g) cell += index[g] * s[with_cells].cell[g];
      for (int64_t i = 0; i < p.cells.sizes[cell]; ++i) add(p.cells.Begin(cell) + i, ragged_factor);
      return;
    }
    if (static_cast<int>(f) == ragged_factor) return self(self, f + 1);
    for (index[f] = 0; index[f] < p.extent[f]; ++index[f]) self(self, f + 1);
    index[f] = 0;
  };
  visit(visit, 0);
  return y;
}

// By the plan, read as its header says. Marks what it writes.
std::vector<double> ByPlan(const Problem& p, const Contraction& c) {
  const std::vector<double>&a = c.swapped ? p.b : p.a, &b = c.swapped ? p.a : p.b;
  std::vector<double> y(p.result_elements, std::nan(""));
  const auto product = [&](int64_t at_a, int64_t at_b, int64_t at_c, int64_t m, int64_t k) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < c.n; ++j) {
        double sum = 0;
        for (int64_t o = 0; o < c.outer_k.extent; ++o) {
          for (int64_t l = 0; l < k; ++l) {
            sum += a.at(at_a + i * c.a_m + l * c.a_k + o * c.outer_k.a) *
                   b.at(at_b + l * c.b_k + j * c.b_n + o * c.outer_k.b);
          }
        }
        EXPECT_TRUE(std::isnan(y.at(at_c + i * c.c_m + j))) << "written twice";
        y.at(at_c + i * c.c_m + j) = sum;
      }
    }
  };
  EXPECT_TRUE(c.a_m == 1 || c.a_k == 1);
  EXPECT_TRUE(c.b_n == 1 || c.b_k == 1);
  if (c.kind == ContractionKind::kDense) {
    int64_t batches = 1;
    for (const ContractionLoop& loop : c.batches) batches *= loop.extent;
    for (int64_t i = 0; i < batches; ++i) {
      int64_t left = i, at_a = 0, at_b = 0, at_c = 0;
      for (const ContractionLoop& loop : c.batches) {
        at_a += left % loop.extent * loop.a;
        at_b += left % loop.extent * loop.b;
        at_c += left % loop.extent * loop.c;
        left /= loop.extent;
      }
      product(at_a, at_b, at_c, c.m, c.k);
    }
    return y;
  }
  for (int64_t g = 0; g < c.groups; ++g) {
    const int64_t begin = p.cells.Begin(g * c.cells_per_group),
                  rows = p.cells.Begin((g + 1) * c.cells_per_group) - begin;
    if (c.kind == ContractionKind::kRowsInM) {
      product(begin * c.a_m, g * c.b_group, begin * c.c_m, rows, c.k);
    } else {
      product(begin * c.a_k, begin * c.b_k, g * c.c_group, c.m, rows);
    }
  }
  return y;
}

void ExpectSame(const Problem& p, const Contraction& c) {
  const std::vector<double> want = ByMeaning(p), got = ByPlan(p, c);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-9) << i;
}

Problem Dense(const std::string& eq, std::vector<int64_t> extent, std::mt19937_64& rng) {
  Problem p;
  p.rule = *ShardingRule::Parse(eq);
  p.extent = std::move(extent);
  p.ragged_in = {-1, -1};
  Fill(p, rng);
  return p;
}

Contraction PlanOf(const Problem& p) { return PlanContraction(p.rule, p.extent, p.ragged_in, p.ragged_out); }

TEST(ContractionTest, FormsOfATransformer) {
  std::mt19937_64 rng(Seed());
  struct Form {
    std::string eq;
    int64_t m, n, k;
    size_t batches;
  };
  // Extents in the order in which factors appear.
  const std::vector<std::pair<Form, std::vector<int64_t>>> forms = {
      {{"b s h, h n d -> b s n d", 10, 21, 6, 0}, {2, 5, 6, 3, 7}},
      {{"b s n d, n d h -> b s h", 10, 6, 21, 0}, {2, 5, 3, 7, 6}},
      {{"b s n d, b s h -> h n d", 6, 21, 10, 0}, {2, 5, 3, 7, 6}},
      {{"b s n d, h n d -> b s h", 10, 6, 21, 0}, {2, 5, 3, 7, 6}},
      {{"e b c p h, e h f -> e b c p f", 24, 5, 6, 1}, {4, 2, 3, 4, 6, 5}},
      {{"e b c p f, e b c p h -> e h f", 6, 5, 24, 1}, {4, 2, 3, 4, 5, 6}},
  };
  for (const auto& [form, extent] : forms) {
    SCOPED_TRACE(form.eq);
    const Problem p = Dense(form.eq, extent, rng);
    const Contraction c = PlanOf(p);
    ASSERT_EQ(c.kind, ContractionKind::kDense);
    EXPECT_EQ(c.m, form.m);
    EXPECT_EQ(c.n, form.n);
    EXPECT_EQ(c.k, form.k);
    EXPECT_EQ(c.batches.size(), form.batches);
    ExpectSame(p, c);
  }
}

TEST(ContractionTest, WhatIsNoProductIsLoops) {
  std::mt19937_64 rng(Seed());
  for (const auto& [eq, extent] : std::vector<std::pair<std::string, std::vector<int64_t>>>{
           {"b s, b s ->", {20, 30}},                // a dot product
           {"b h, s f -> b s h f", {4, 5, 6, 7}},    // nothing is reduced
           {"b c t e, e -> b c t e", {3, 4, 5, 6}},  // likewise
           {"b s h, s -> s", {4, 20, 5}},            // a factor in one operand alone
       }) {
    EXPECT_EQ(PlanOf(Dense(eq, extent, rng)).kind, ContractionKind::kLoops) << eq;
  }
}

// Random operands and results of up to six factors, in any order.
TEST(ContractionTest, RandomDenseForms) {
  std::mt19937_64 rng(Seed());
  RecordProperty("seed", std::to_string(Seed()));
  int products = 0;
  for (int round = 0; round < 5000; ++round) {
    const int count = 2 + rng() % 5;
    std::vector<std::string> terms[3];
    for (int f = 0; f < count; ++f) {
      const std::string name(1, static_cast<char>('a' + f));
      const int in = std::vector<int>{3, 5, 6, 7, 3, 5, 6, 1}[rng() % 8];  // bits: a, b, result
      for (int t = 0; t < 3; ++t) {
        if (in >> t & 1) terms[t].push_back(name);
      }
    }
    for (std::vector<std::string>& term : terms) std::shuffle(term.begin(), term.end(), rng);
    if (terms[0].empty() || terms[1].empty()) continue;
    const std::string eq = absl::StrCat(absl::StrJoin(terms[0], " "), ", ", absl::StrJoin(terms[1], " "),
                                        " -> ", absl::StrJoin(terms[2], " "));
    const absl::StatusOr<ShardingRule> rule = ShardingRule::Parse(eq);
    ASSERT_OK(rule);
    std::vector<int64_t> extent;
    for (int f = 0; f < rule->num_factors(); ++f) extent.push_back(1 + rng() % 5);
    SCOPED_TRACE(::testing::Message()
                 << eq << " extents " << absl::StrJoin(extent, " ") << " seed " << Seed());
    const Problem p = Dense(eq, extent, rng);
    const Contraction c = PlanOf(p);
    if (c.kind == ContractionKind::kLoops) continue;
    ++products;
    ExpectSame(p, c);
    if (HasFailure()) return;
  }
  EXPECT_GT(products, 100);
}

TEST(ContractionTest, RaggedForms) {
  std::mt19937_64 rng(Seed());
  struct Form {
    std::string eq;
    std::vector<int> ragged_in;
    int ragged_out;
    ContractionKind kind;
    bool shared;
  };
  const std::vector<Form> forms = {
      {"e b c p! h, e h f -> e b c p! f", {3, -1}, 3, ContractionKind::kRowsInM, false},
      {"e b c p! f, e h f -> e b c p! h", {3, -1}, 3, ContractionKind::kRowsInM, false},
      {"e h f, e b c p! h -> e b c p! f", {-1, 3}, 3, ContractionKind::kRowsInM, false},
      {"e b c p! h, h f -> e b c p! f", {3, -1}, 3, ContractionKind::kRowsInM, true},
      {"e b c p! f, e b c p! h -> e h f", {3, 3}, -1, ContractionKind::kRowsInK, false},
      {"e b c p! f, e b c p! h -> e f h", {3, 3}, -1, ContractionKind::kRowsInK, false},
      {"e b c p! f, e b c p! h -> h f", {3, 3}, -1, ContractionKind::kRowsInK, true},
      {"e b c p! h, b h -> e b c p! h", {3, -1}, 3, ContractionKind::kLoops, false},
      {"e b c p! h, e b h f -> e b c p! f", {3, -1}, 3, ContractionKind::kLoops, false},
  };
  for (const Form& form : forms) {
    for (int round = 0; round < 20; ++round) {
      Problem p;
      p.rule = *ShardingRule::Parse(form.eq);
      for (int f = 0; f < p.rule.num_factors(); ++f) p.extent.push_back(round == 0 ? 1 : 1 + rng() % 4);
      p.ragged_in = form.ragged_in;
      p.ragged_out = form.ragged_out;
      const FactorTerm& term = p.rule.operands[form.ragged_in[0] >= 0 ? 0 : 1];
      int64_t cells = 1;
      for (int d = 0; d < 3; ++d) cells *= p.extent[term[d][0]];
      for (int64_t i = 0; i < cells; ++i) p.cells.sizes.push_back(rng() % 3 * (rng() % 4));
      Fill(p, rng);
      SCOPED_TRACE(::testing::Message()
                   << form.eq << " extents " << absl::StrJoin(p.extent, " ") << " seed " << Seed());
      const Contraction c = PlanOf(p);
      if (form.kind == ContractionKind::kLoops) {
        // With one sample or one expert, some of them are products after all.
        if (round > 0 && c.kind != ContractionKind::kLoops) ExpectSame(p, c);
        continue;
      }
      ASSERT_EQ(c.kind, form.kind);
      EXPECT_EQ(c.groups, form.shared ? 1 : p.extent[term[0][0]]);
      ExpectSame(p, c);
    }
  }
}

}  // namespace
}  // namespace moe::kernels
