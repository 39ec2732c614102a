#include "moe/testing/composition.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/match.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"

namespace moe::testing {
namespace {

TEST(Composition, EveryPairIsTestedOrRefusedWithItsReason) {
  const Composition c = Compose(TestedCases());
  for (size_t a = 0; a < c.features.size(); ++a) {
    EXPECT_GT(c.together[a][a], 0) << c.features[a];
    for (size_t b = 0; b < a; ++b) {
      EXPECT_TRUE(c.together[a][b] > 0 || !c.refused[a][b].empty())
          << c.features[a] << " with " << c.features[b] << ": nobody tries it";
      EXPECT_EQ(c.together[a][b], c.together[b][a]);
    }
  }
}

TEST(Composition, ThePageHasTheTable) {
  ASSERT_OK_AND_ASSIGN(const std::string page, ReadFile("docs/plans.md"));
  const std::string table = CompositionTable();
  EXPECT_TRUE(absl::StrContains(page, table))
      << "docs/plans.md is stale; bazel run //moe/testing:composition_table prints\n"
      << table;
}

}  // namespace
}  // namespace moe::testing
