#include "moe/passes/checkpoint/recompute_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace moe::passes {
namespace {

// A chain in layers, as models are: most nodes read one or two of the values before, some may not be computed
// again.
RecomputeProblem RandomProblem(std::mt19937& random, int nodes) {
  RecomputeProblem p;
  const auto below = [&](int n) { return static_cast<int>(random() % n); };
  for (int n = 0; n < nodes; ++n) {
    std::vector<int> reads;
    const int known = static_cast<int>(p.values.size());
    for (int i = below(3); i > 0 && known > 0; --i) reads.push_back(std::max(0, known - 1 - below(5)));
    const int id = p.AddNode(0.5 + below(40), below(8) != 0, reads);
    for (int i = below(6) == 0 ? 2 : 1; i > 0; --i) p.AddValue(id, 64 * (1 + below(30)), below(3) != 0);
  }
  return p;
}

double Best(const RecomputeProblem& p, int64_t budget) {
  double best = std::numeric_limits<double>::infinity();
  const int n = static_cast<int>(p.nodes.size());
  for (uint32_t set = 0; set < uint32_t{1} << n; ++set) {
    std::vector<bool> recompute(n);
    for (int i = 0; i < n; ++i) recompute[i] = set >> i & 1;
    const RecomputeChoice c = Evaluate(p, recompute);
    if (c.bytes <= budget) best = std::min(best, c.cost);
  }
  return best;
}

// The best of all choices, tried one by one, at budgets all the way from fewest to most bytes.
TEST(RecomputeSearch, ComparesWithAnExhaustiveSearch) {
  std::mt19937 random(7);
  int cases = 0, best_found = 0;
  double worst = 1;
  for (int graph = 0; graph < 60; ++graph) {
    const RecomputeProblem p = RandomProblem(random, 6 + static_cast<int>(random() % 7));
    const int64_t most = Evaluate(p, std::vector<bool>(p.nodes.size())).bytes;
    const int64_t fewest = LeastRecomputation(p, 0).bytes;
    for (int i = 0; i <= 8; ++i) {
      const int64_t budget = fewest + (most - fewest) * i / 8;
      const RecomputeChoice c = LeastRecomputation(p, budget);
      SCOPED_TRACE(::testing::Message()
                   << "graph " << graph << ", budget " << budget << " of " << fewest << " to " << most);
      const double best = Best(p, budget);
      ASSERT_TRUE(c.fits);
      ASSERT_LE(c.bytes, budget);
      ASSERT_GE(c.cost, best - 1e-9);
      ASSERT_LE(c.at_least, best + 1e-6) << "the bound is none";
      ASSERT_DOUBLE_EQ(Evaluate(p, c.recompute).cost, c.cost);
      ++cases;
      best_found += c.cost <= best + 1e-9;
      if (best > 0) worst = std::max(worst, c.cost / best);
    }
  }
  // Small enough for branch and bound to end: the best itself, each time.
  EXPECT_EQ(best_found, cases);
  EXPECT_LE(worst, 1 + 1e-9);
}

TEST(RecomputeSearch, SaysWhenNothingFits) {
  RecomputeProblem p;
  const int decides = p.AddNode(1, /*may=*/false, {});
  p.AddValue(decides, 128, true);
  const int cheap = p.AddNode(1, true, {0});
  p.AddValue(cheap, 512, true);
  const RecomputeChoice c = LeastRecomputation(p, 100);
  EXPECT_FALSE(c.fits);
  EXPECT_EQ(c.bytes, 128);
  EXPECT_TRUE(LeastRecomputation(p, 128).fits);
  EXPECT_FALSE(LeastRecomputation(p, 128).recompute[decides]);
}

// Equal layers do not change all at once: the budget is used.
TEST(RecomputeSearch, EqualLayersChangeOneByOne) {
  RecomputeProblem p;
  int x = p.AddValue(p.AddNode(100, false, {}), 64, true);
  for (int layer = 0; layer < 60; ++layer) {
    const int norm = p.AddValue(p.AddNode(1, true, {x}), 1024, true);
    const int up = p.AddValue(p.AddNode(50, true, {norm}), 4096, true);
    const int act = p.AddValue(p.AddNode(2, true, {up}), 4096, true);
    x = p.AddValue(p.AddNode(50, true, {x, act}), 1024, true);
  }
  const int64_t most = Evaluate(p, std::vector<bool>(p.nodes.size())).bytes;
  // 17 activations' worth: the norms (1 per KiB, like half an activation) go first, or with them.
  const RecomputeChoice c = LeastRecomputation(p, most - 17 * 4096);
  EXPECT_TRUE(c.fits);
  EXPECT_GT(c.bytes, most - 18 * 4096);
  EXPECT_DOUBLE_EQ(c.cost, 34);
  EXPECT_NEAR(c.at_least, 34, 0.1);
}

// A value that is expensive to make again may yet be the one to drop: what it reads is there anyway.
TEST(RecomputeSearch, CountsWhatIsNeededInTurn) {
  RecomputeProblem p;
  const int a = p.AddValue(p.AddNode(10, true, {}), 1000, false);
  const int b = p.AddValue(p.AddNode(1, true, {a}), 600, true);
  const int c = p.AddValue(p.AddNode(1, true, {a}), 600, true);
  // Saving a (1000) and computing b and c again beats saving both.
  const RecomputeChoice choice = LeastRecomputation(p, 1100);
  EXPECT_EQ(choice.bytes, 1000);
  EXPECT_DOUBLE_EQ(choice.cost, 2);
  EXPECT_FALSE(choice.recompute[p.values[a].node]);
  EXPECT_TRUE(choice.recompute[p.values[b].node] && choice.recompute[p.values[c].node]);
}

}  // namespace
}  // namespace moe::passes
