#include "moe/strategy/fold.h"

#include <gtest/gtest.h>

#include "moe/base/status_matchers.h"

namespace moe::strategy {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Strategy S(absl::string_view text) { return ParseStrategy(text).value(); }

TEST(FoldMesh, ExpertsInsideDataParallel) {
  ASSERT_OK_AND_ASSIGN(Mesh mesh, FoldMesh(S("pp=2 dp=2 tp=2 ep=2"), 4));
  EXPECT_EQ(mesh.ToString(),
            Mesh({{"pp", 2}, {"b", 2}, {"a", 2}},
                 {{"cp", {}}, {"dp", {1}}, {"edp", {1}}, {"ep", {2}}, {"etp", {}}, {"kvh", {2}}, {"tp", {2}}})
                .ToString());
  EXPECT_EQ(mesh.num_ranks(), 8);
  EXPECT_EQ(mesh.Alias("dp"), AxisList({1}));
  EXPECT_EQ(mesh.Alias("ep"), AxisList({2}));
}

TEST(FoldMesh, AtomsAreMajorFirstAndNamedMinorFirst) {
  ASSERT_OK_AND_ASSIGN(Mesh mesh, FoldMesh(S("cp=2 tp=2 dp=4 ep=8"), 2));
  ASSERT_EQ(mesh.num_axes(), 4);
  EXPECT_EQ(mesh.name(0), "d");
  EXPECT_EQ(mesh.name(3), "a");
  EXPECT_EQ(mesh.Alias("dp"), AxisList({0, 1}));
  EXPECT_EQ(mesh.Alias("ep"), AxisList({1, 2, 3}));
  EXPECT_EQ(mesh.Alias("edp"), AxisList({0}));
}

TEST(FoldMesh, FewerKeyValueHeadsThanTp) {
  ASSERT_OK_AND_ASSIGN(Mesh mesh, FoldMesh(S("tp=8 etp=8"), 2));
  ASSERT_EQ(mesh.num_axes(), 2);
  EXPECT_EQ(mesh.size(0), 2);
  EXPECT_EQ(mesh.Alias("kvh"), AxisList({0}));
  EXPECT_EQ(mesh.Alias("tp"), AxisList({0, 1}));
  ASSERT_OK_AND_ASSIGN(mesh, FoldMesh(S("tp=8 etp=8 no_kv_axis"), 2));
  EXPECT_EQ(mesh.num_axes(), 1);
}

TEST(FoldMesh, InnerPartOfTheDataRanks) {
  ASSERT_OK_AND_ASSIGN(Mesh mesh, FoldMesh(S("tp=2 dp=8 ep=2 etp=2 zero=1 zero_dp=4 expert_zero_dp=2"), 0));
  EXPECT_EQ(mesh.Size(mesh.Alias("shard")), 4);
  EXPECT_EQ(mesh.Size(mesh.Alias("expert_shard")), 2);
  // The innermost of each: next to tp, and next to the experts.
  EXPECT_EQ(mesh.Group(0, mesh.Alias("shard")), (std::vector<int64_t>{0, 2, 4, 6}));
  EXPECT_EQ(mesh.Group(0, mesh.Alias("expert_shard")), (std::vector<int64_t>{0, 4}));
  ExpectError(FoldMesh(S("dp=8 zero=1 zero_dp=3"), 0), absl::StatusCode::kInvalidArgument, "zero_dp = 3",
              "dp x cp = 8");
  ExpectError(FoldMesh(S("dp=8 ep=2 zero=1 expert_zero_dp=8"), 0), absl::StatusCode::kInvalidArgument,
              "expert_zero_dp = 8", "edp = 4");
  ExpectError(FoldMesh(S("dp=8 zero_dp=2"), 0), absl::StatusCode::kInvalidArgument, "zero = 1, 2 or 3");
}

TEST(FoldMesh, AxesInsideANode) {
  ASSERT_OK_AND_ASSIGN(Mesh mesh, FoldMesh(S("tp=2 dp=8 devices_per_node=8"), 0));
  EXPECT_EQ(mesh.Group(0, mesh.Alias("node")), (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(mesh.Alias("dp").size(), 2u);  // split where the node ends
  ASSERT_OK_AND_ASSIGN(mesh, FoldMesh(S("tp=2 dp=8 devices_per_node=16"), 0));
  EXPECT_FALSE(mesh.aliases().count("node"));
  // Nodes of 6, stages of 16: only pairs never straddle.
  ASSERT_OK_AND_ASSIGN(mesh, FoldMesh(S("pp=3 tp=2 dp=8 devices_per_node=6"), 0));
  EXPECT_EQ(mesh.Size(mesh.Alias("node")), 2);
  // 4 is inside a node, but no multiple of 6 = tp: the axis stays whole, and counts as across.
  ASSERT_OK_AND_ASSIGN(mesh, FoldMesh(S("tp=6 dp=2 devices_per_node=4"), 0));
  EXPECT_EQ(mesh.Size(mesh.Alias("node")), 2);
}

TEST(FoldMesh, OneRank) {
  ASSERT_OK_AND_ASSIGN(Mesh mesh, FoldMesh(Strategy(), 4));
  EXPECT_EQ(mesh.num_axes(), 0);
  EXPECT_EQ(mesh.num_ranks(), 1);
}

TEST(FoldMesh, ImpossibleDegreesSayWhatClashes) {
  ExpectError(FoldMesh(S("tp=2 dp=4 ep=3"), 0), absl::StatusCode::kInvalidArgument,
              "etp x ep = 3 does not divide");
  ExpectError(FoldMesh(S("dp=0"), 0), absl::StatusCode::kInvalidArgument, "dp = 0", "1 to");
  ExpectError(FoldMesh(S("tp=6 dp=2"), 4), absl::StatusCode::kInvalidArgument, "4 key-value heads");
  ExpectError(FoldMesh(S("tp=2 dp=6 etp=3 ep=4"), 0), absl::StatusCode::kInvalidArgument,
              "2 does not divide 3");
}

TEST(FoldMesh, SaysWhenTheOtherOrderWouldFit) {
  ExpectError(FoldMesh(S("tp=3 dp=4 ep=4"), 0), absl::StatusCode::kInvalidArgument, "3 does not divide 4",
              "(etp, edp, ep)");
  const auto other = FoldMesh(S("tp=2 dp=4 ep=3"), 0);
  EXPECT_THAT(std::string(other.status().message()), Not(HasSubstr("(etp, edp, ep)")));
}

}  // namespace
}  // namespace moe::strategy
