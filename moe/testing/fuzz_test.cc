#include "moe/testing/fuzz.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <string>

#include "moe/base/status_matchers.h"

namespace moe::testing {
namespace {

using ::testing::HasSubstr;

TEST(Fuzz, PlansEqualTheReference) {
  ASSERT_OK_AND_ASSIGN(const FuzzReport report, Fuzz(FuzzSpace(), {.seconds = 15, .seed = 20}, std::cout));
  EXPECT_GT(report.cases, 0);
  EXPECT_EQ(report.failure, "") << report.smallest;
  RecordProperty("cases", std::to_string(report.cases));
}

// What fails only with two features together shrinks to these two.
TEST(Fuzz, ShrinksToWhatMatters) {
  const StrategySpace& space = FuzzSpace();
  const auto fails = [&](const Point& p) {
    const EquivalenceCase c = space.Case(p);
    return c.strategy.find("tp=2") != std::string::npos && c.strategy.find(" zero=") != std::string::npos;
  };
  Draw draw(3);
  Point p;
  do p = space.RandomLegal(&draw);
  while (!fails(p));
  const Point smallest = space.Shrink(p, fails);
  EXPECT_TRUE(fails(smallest)) << space.Describe(smallest);
  EXPECT_EQ(space.Problems(smallest), "");
  EXPECT_THAT(space.Describe(smallest), HasSubstr("tp=2"));
  EXPECT_THAT(space.Describe(smallest), HasSubstr("zero=1"));
  EXPECT_EQ(space.Describe(smallest).find("dp="), std::string::npos) << space.Describe(smallest);
  EXPECT_EQ(space.Describe(smallest).find("pp="), std::string::npos) << space.Describe(smallest);
}

TEST(Fuzz, CrashesAndHangsAreFailures) {
  ASSERT_OK_AND_ASSIGN(std::string said, InAnotherProcess([] { return "fine"; }, absl::Seconds(60)));
  EXPECT_EQ(said, "fine");
  ASSERT_OK_AND_ASSIGN(said, InAnotherProcess([]() -> std::string { std::abort(); }, absl::Seconds(60)));
  EXPECT_THAT(said, HasSubstr("signal 6"));
  const auto forever = []() -> std::string {
    for (;;) pause();
  };
  ASSERT_OK_AND_ASSIGN(said, InAnotherProcess(forever, absl::Milliseconds(50)));
  EXPECT_THAT(said, HasSubstr("no end"));
}

TEST(Fuzz, PointsPrintAndParse) {
  const StrategySpace& space = FuzzSpace();
  Draw draw(1);
  const Point p = space.Random(&draw);
  ASSERT_OK_AND_ASSIGN(const Point again, ParsePoint(PointToString(p), space));
  EXPECT_EQ(again, p);
  ExpectError(ParsePoint("0.99", space), absl::StatusCode::kInvalidArgument, "'99' is not a value");
  ExpectError(ParsePoint("0.0", space), absl::StatusCode::kInvalidArgument, "has 2 numbers");
}

}  // namespace
}  // namespace moe::testing
