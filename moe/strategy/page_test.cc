#include "moe/strategy/page.h"

#include <gtest/gtest.h>

#include "moe/base/file.h"
#include "moe/base/status_matchers.h"

namespace moe::strategy {
namespace {

TEST(StrategyPage, IsNotStale) {
  ASSERT_OK_AND_ASSIGN(const std::string page, ReadFile("docs/strategy.md"));
  EXPECT_TRUE(page == StrategyPage())
      << "stale; run: bazel run //tools:gen_strategy_doc > docs/strategy.md, which prints\n"
      << StrategyPage();
}

}  // namespace
}  // namespace moe::strategy
