// Every strategy of equivalence_lines.cc against the one-device reference.
#include "moe/testing/equivalence.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/testing/equivalence_lines.h"

namespace moe::testing {
namespace {

class StarvedTest : public ::testing::TestWithParam<StarvedLine> {};

TEST_P(StarvedTest, MatchesTheReference) {
  EquivalenceCase c = CaseOf(GetParam());
  c.steps = 5;
  ASSERT_OK_AND_ASSIGN(EquivalenceResult r, CheckEquivalence(c));
  SCOPED_TRACE(r.ToString());
  EXPECT_LT(r.worst_gradient, 1e-9);
  EXPECT_LT(r.worst_loss, 1e-9);
  EXPECT_TRUE(r.MemoryIsAsPlanned()) << r.ToString();
  EXPECT_EQ(r.unlike_counted, "");
}

INSTANTIATE_TEST_SUITE_P(Workloads, StarvedTest,
                         ::testing::ValuesIn(StarvedLines().begin(), StarvedLines().end()));

class EquivalenceTest : public ::testing::TestWithParam<Line> {};

TEST_P(EquivalenceTest, MatchesTheReferenceInF64) {
  EquivalenceCase c = CaseOf(GetParam());
  c.twice = true;
  ASSERT_OK_AND_ASSIGN(EquivalenceResult r, CheckEquivalence(c));
  SCOPED_TRACE(r.ToString());
  EXPECT_LT(r.worst_gradient, 1e-9);
  EXPECT_LT(r.worst_loss, 1e-9);
  EXPECT_LT(r.worst_parameter, 1e-7);  // AdamW's first steps amplify gradient error
  EXPECT_TRUE(r.repeated_bitwise);
  EXPECT_TRUE(r.MemoryIsAsPlanned()) << r.ToString();
  EXPECT_EQ(r.unlike_counted, "");
  RecordProperty("result", r.ToString());
}

TEST_P(EquivalenceTest, MatchesTheReferenceInF32WithItsDecisions) {
  EquivalenceCase c = CaseOf(GetParam());
  c.f32 = true;
  ASSERT_OK_AND_ASSIGN(EquivalenceResult r, CheckEquivalence(c));
  SCOPED_TRACE(r.ToString());
  EXPECT_LT(r.worst_gradient, 1e-5);
  EXPECT_LT(r.worst_loss, 1e-4);
}

class NarrowTest : public ::testing::TestWithParam<Line> {};

TEST_P(NarrowTest, LossesAreNearTheReference) {
  EquivalenceCase c = CaseOf(GetParam());
  c.twice = true;
  ASSERT_OK_AND_ASSIGN(EquivalenceResult r, CheckEquivalence(c));
  SCOPED_TRACE(r.ToString());
  EXPECT_LT(r.worst_loss, 2e-2);
  EXPECT_GT(r.worst_loss, 1e-7);  // it did compute narrow
  EXPECT_TRUE(r.repeated_bitwise);
  EXPECT_TRUE(r.MemoryIsAsPlanned()) << r.ToString();
  EXPECT_EQ(r.unlike_counted, "");
  RecordProperty("result", r.ToString());
}

std::string NameOf(const ::testing::TestParamInfo<Line>& info) {
  std::string name = absl::StrCat(info.index, "_", info.param.model, "_", info.param.strategy);
  for (char& ch : name) {
    if (!std::isalnum(static_cast<unsigned char>(ch))) ch = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Strategies, NarrowTest,
                         ::testing::ValuesIn(NarrowLines().begin(), NarrowLines().end()), NameOf);
INSTANTIATE_TEST_SUITE_P(Strategies, EquivalenceTest, ::testing::ValuesIn(Lines().begin(), Lines().end()),
                         NameOf);

}  // namespace
}  // namespace moe::testing
