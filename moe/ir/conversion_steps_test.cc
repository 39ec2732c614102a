#include "moe/ir/conversion_steps.h"

#include <gtest/gtest.h>

#include "moe/base/status_matchers.h"

namespace moe {
namespace {

Mesh TestMesh() { return Mesh({{"dp", 2}, {"ep", 4}, {"tp", 2}}); }

TEST(ConversionSteps, TextRoundTrips) {
  const std::vector<ConversionStep> steps = {
      {StepKind::kReduceScatter, {{2, Placement::kSum, 1}}},
      {StepKind::kAllToAll, {{1, 0, 3}, {0, 2, 0}}},
      {StepKind::kAllGather, {{0, 0, Placement::kNone}}},
      {StepKind::kAllReduce, {{1, Placement::kMax, Placement::kNone}}},
  };
  const std::string text = PrintSteps(steps, TestMesh());
  EXPECT_EQ(text,
            "reduce_scatter tp:sum>1; all_to_all ep:0>3 dp:2>0; all_gather dp:0>-; all_reduce ep:max>-");
  ASSERT_OK_AND_ASSIGN(const std::vector<ConversionStep> parsed, ParseSteps(text, TestMesh()));
  EXPECT_EQ(parsed, steps);
  EXPECT_EQ(parsed[1].axes(), (AxisList{1, 0}));
  ASSERT_OK_AND_ASSIGN(const std::vector<ConversionStep> none, ParseSteps("", TestMesh()));
  EXPECT_TRUE(none.empty());
}

TEST(ConversionSteps, ErrorsSayWhatIsLegal) {
  const auto error = [](absl::string_view text, absl::string_view part) {
    ExpectError(ParseSteps(text, TestMesh()), absl::StatusCode::kInvalidArgument, std::string(part));
  };
  error("all_scatter tp:0>1", "known: zero, slice");
  error("slice", "moves no axis");
  error("slice tp", "axis:from>to");
  error("slice tp:1>0>", "unknown role");
  error("slice zz:->0", "unknown axis");
  error("slice tp:->x", "unknown role");
  error("slice tp:->-1", "unknown role");
  error("all_to_all tp:0>1 tp:1>0", "twice");
}

}  // namespace
}  // namespace moe
