#include "moe/passes/shard/seeds.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "moe/base/status_matchers.h"
#include "moe/strategy/fold.h"

namespace moe::passes {
namespace {

State Parameter(const std::string& role, std::vector<int64_t> dims, bool expert = false) {
  State s;
  s.name = "w";
  s.type = Type(DType::kF32, dims);
  s.attributes = {{"kind", std::string("parameter")},
                  {"role", role},
                  {"class", std::string(expert ? "expert" : "dense")}};
  return s;
}

class SeedsTest : public ::testing::Test {
 protected:
  void Use(absl::string_view text, int64_t kv_heads = 0, AxisOrders orders = {}) {
    strategy_ = *strategy::ParseStrategy(text);
    mesh_ = *strategy::FoldMesh(strategy_, kv_heads);
    seeds_.emplace(mesh_, strategy_, orders);
  }
  std::string Show(const Placement& p) { return PlacementToString(p, mesh_); }
  std::string Compute(const std::string& role, std::vector<int64_t> dims) {
    return Show(seeds_->Compute(Parameter(role, dims)));
  }

  strategy::Strategy strategy_;
  Mesh mesh_;
  std::optional<Seeds> seeds_;
};

TEST_F(SeedsTest, ComputePlacementsByRole) {
  Use("tp=4 dp=2 etp=2 ep=2 vp", /*kv_heads=*/2);
  EXPECT_EQ(Compute("emb", {32, 16}), "[tp, -]");
  EXPECT_EQ(Compute("head", {32, 16}), "[tp, -]");
  EXPECT_EQ(Compute("norm", {16}), "[-]");
  EXPECT_EQ(Compute("q", {16, 8, 4}), "[-, tp, -]");
  EXPECT_EQ(Compute("kv", {16, 2, 4}), "[-, ep, -]");  // kvh, the major half of tp, is also ep here
  EXPECT_EQ(Compute("o", {8, 4, 16}), "[tp, -, -]");
  EXPECT_EQ(Compute("up", {16, 32}), "[-, tp]");
  EXPECT_EQ(Compute("down", {32, 16}), "[tp, -]");
  EXPECT_EQ(Compute("router", {16, 8}), "[-, -]");
  EXPECT_EQ(Compute("eup", {8, 16, 32}), "[ep, -, etp]");
  EXPECT_EQ(Compute("edown", {8, 32, 16}), "[ep, etp, -]");
}

TEST_F(SeedsTest, ZeroAppendsTheDataAxesToTheFirstDimThatTheyDivide) {
  Use("tp=2 dp=4 ep=4 zero=1");
  const auto optimizer = [&](const State& s) { return Show(seeds_->Optimizer(s)); };
  EXPECT_EQ(optimizer(Parameter("q", {16, 8, 4})), "[dp, tp, -]");
  EXPECT_EQ(optimizer(Parameter("down", {32, 16})), "[a.c.b, -]");
  EXPECT_EQ(optimizer(Parameter("eup", {8, 16, 32}, true)), "[b.a.c, -, -]");  // ep, then edp
  EXPECT_EQ(optimizer(Parameter("eup", {4, 16, 32}, true)), "[ep, edp, -]");
  EXPECT_EQ(optimizer(Parameter("norm", {6})), "[b]");  // only a part of dp divides it
  EXPECT_EQ(optimizer(Parameter("norm", {7})), "[-]");
  EXPECT_EQ(Show(seeds_->Storage(Parameter("q", {16, 8, 4}))), "[-, tp, -]");
  EXPECT_FALSE(seeds_->ScattersGradient(Parameter("q", {16, 8, 4})));
  Use("tp=2 dp=4 zero=3 expert_zero=0");
  EXPECT_EQ(Show(seeds_->Storage(Parameter("q", {16, 8, 4}))), "[dp, tp, -]");
  EXPECT_TRUE(seeds_->ScattersGradient(Parameter("q", {16, 8, 4})));
  EXPECT_FALSE(seeds_->ScattersGradient(Parameter("eup", {8, 16, 32}, true)));
}

TEST_F(SeedsTest, StateOverAnInnerPartOfTheDataRanks) {
  Use("dp=8 ep=2 zero=2 zero_dp=2 expert_zero_dp=1");
  const State q = Parameter("q", {16, 8, 4}), expert = Parameter("eup", {8, 16, 32}, true);
  EXPECT_EQ(mesh_.Size(seeds_->Optimizer(q).dims[0]), 2);
  EXPECT_TRUE(seeds_->ScattersGradient(q));
  EXPECT_TRUE(seeds_->KeepsCopies(q));
  EXPECT_EQ(Show(seeds_->Optimizer(expert)), "[ep, -, -]");
  Use("dp=8 ep=2 zero=2 zero_dp=8 expert_zero_dp=4");
  EXPECT_FALSE(seeds_->KeepsCopies(q));
  EXPECT_FALSE(seeds_->KeepsCopies(expert));
}

TEST_F(SeedsTest, TokensAndResidualStream) {
  Use("cp=2 tp=2 dp=2 sp");
  EXPECT_EQ(Show(seeds_->Batch(Type(DType::kS32, {8, 16}))), "[dp, cp]");
  EXPECT_EQ(Show(seeds_->Batch(Type(DType::kS32, {16}))), "[cp]");
  EXPECT_EQ(Show(seeds_->ResidualStream(Type(DType::kF32, {8, 16, 4}))), "[dp, b.a, -]");
}

TEST_F(SeedsTest, OrdersWorthTrying) {
  Use("dp=8 ep=8");
  EXPECT_EQ(CandidateOrders(mesh_, strategy_).size(), 1);  // one expert axis: nothing to choose
  Use("tp=2 dp=4 ep=8");
  EXPECT_EQ(CandidateOrders(mesh_, strategy_).size(), 2);
  Use("tp=2 dp=4 ep=8 ep_order=reversed");
  ASSERT_EQ(CandidateOrders(mesh_, strategy_).size(), 1);
  EXPECT_TRUE(CandidateOrders(mesh_, strategy_)[0].reverse_ep);
  // etp is minor in the fold; tokens want the expert axes minor.
  Use("dp=8 etp=2 ep=4", 0, {.regroup_dp = true});
  EXPECT_EQ(CandidateOrders(mesh_, strategy_).size(), 2);
  EXPECT_EQ(Show(seeds_->Batch(Type(DType::kS32, {8, 16}))), "[a.b, -]");
}

TEST_F(SeedsTest, WrittenPlacementsStay) {
  Use("tp=2 dp=2 zero=3");
  State s = Parameter("up", {16, 32});
  s.type.placement.dims[0] = {1};
  EXPECT_EQ(Show(seeds_->Storage(s)), "[tp, -]");
}

}  // namespace
}  // namespace moe::passes
