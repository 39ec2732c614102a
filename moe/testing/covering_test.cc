// Every pair of features together, against the one-device reference: a pairwise covering array over the
// dimensions of strategy_space.h, drawn by a seed and printed.
#include <gtest/gtest.h>

#include <iostream>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/strategy/strategy.h"
#include "moe/strategy/word.h"
#include "moe/testing/equivalence.h"
#include "moe/testing/strategy_space.h"

namespace moe::testing {
namespace {

class CoveringTest : public ::testing::TestWithParam<int> {};

TEST_P(CoveringTest, EqualsTheReference) {
  const Point& p = MatrixPoints()[GetParam()];
  EquivalenceCase c = MatrixSpace().Case(MatrixSpace().Exact(p));
  SCOPED_TRACE(MatrixSpace().Describe(p));
  c.steps = 2;  // the second sees what the first one's update left
  c.twice = GetParam() % 4 == 0;
  ASSERT_OK_AND_ASSIGN(const EquivalenceResult r, CheckEquivalence(c));
  EXPECT_LT(r.worst_gradient, 1e-9) << r.ToString();
  EXPECT_LT(r.worst_loss, 1e-9) << r.ToString();
  EXPECT_LT(r.worst_parameter, 1e-7) << r.ToString();  // AdamW's first steps amplify gradient error
  EXPECT_TRUE(r.repeated_bitwise);
  EXPECT_TRUE(r.MemoryIsAsPlanned()) << r.ToString();
  // And in f32, or as narrow as the point says.
  c.strategy = MatrixSpace().Case(p).strategy;
  c.f32 = true;
  c.steps = 1;
  c.twice = false;
  const bool narrow = strategy::Rounds(*strategy::ParseStrategy(c.strategy));
  ASSERT_OK_AND_ASSIGN(const EquivalenceResult f32, CheckEquivalence(c));
  if (!narrow) {
    EXPECT_LT(f32.worst_gradient, 1e-5) << f32.ToString();
  }
  EXPECT_LT(f32.worst_loss, narrow ? 2e-2 : 1e-4) << f32.ToString();
  EXPECT_TRUE(f32.MemoryIsAsPlanned()) << f32.ToString();
  std::cout << MatrixSpace().Describe(p) << "\n  f64 " << r.ToString()
            << (narrow ? "\n  narrow " : "\n  f32 ") << f32.ToString() << std::endl;
}

INSTANTIATE_TEST_SUITE_P(Strategies, CoveringTest,
                         ::testing::Range(0, static_cast<int>(MatrixPoints().size())));

TEST(Covering, EveryPairStandsTogetherOrSaysWhyNot) {
  const StrategySpace& space = MatrixSpace();
  EXPECT_GE(MatrixPoints().size(), 80);
  std::set<std::string> names;
  for (const Point& p : MatrixPoints()) {
    EXPECT_EQ(space.Problems(p), "") << space.Describe(p);
    names.insert(space.Describe(p));
  }
  EXPECT_EQ(names.size(), MatrixPoints().size());
  std::set<std::array<int, 4>> impossible;
  for (const ImpossiblePair& pair : MatrixImpossible()) {
    impossible.insert({pair.dimension[0], pair.value[0], pair.dimension[1], pair.value[1]});
    EXPECT_NE(pair.reason, "");
    std::cout << space.dimensions()[pair.dimension[0]].values[pair.value[0]].label << " with "
              << space.dimensions()[pair.dimension[1]].values[pair.value[1]].label << ": " << pair.reason
              << "\n";
  }
  const int n = static_cast<int>(space.dimensions().size());
  for (int a = 0; a < n; ++a) {
    for (int b = a + 1; b < n; ++b) {
      for (int va = 0; va < static_cast<int>(space.dimensions()[a].values.size()); ++va) {
        for (int vb = 0; vb < static_cast<int>(space.dimensions()[b].values.size()); ++vb) {
          bool together = impossible.count({a, va, b, vb}) > 0;
          for (const Point& p : MatrixPoints()) together = together || (p[a] == va && p[b] == vb);
          EXPECT_TRUE(together) << space.dimensions()[a].values[va].label << " with "
                                << space.dimensions()[b].values[vb].label;
        }
      }
    }
  }
}

TEST(Covering, TheSameSeedDrawsTheSamePoints) {
  EXPECT_EQ(MatrixSpace().CoverPairs(kMatrixSeed), MatrixSpace().CoverPairs(kMatrixSeed));
}

}  // namespace
}  // namespace moe::testing
