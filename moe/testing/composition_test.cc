#include "moe/testing/composition.h"

#include <gtest/gtest.h>

#include <string>

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

TEST(Composition, ThePageIsNotStale) {
  ASSERT_OK_AND_ASSIGN(const std::string page, ReadFile("docs/composition.md"));
  EXPECT_TRUE(page == CompositionPage())
      << "stale; run: bazel run //moe/testing:composition_page > docs/composition.md, which prints\n"
      << CompositionPage();
}

}  // namespace
}  // namespace moe::testing
