#include "moe/passes/shard/insert_collectives.h"

#include <gmock/gmock.h>

#include "moe/testing/pass_test.h"

namespace moe::passes {
namespace {

using ::testing::HasSubstr;

class InsertCollectivesTest : public testing::PassTest {};

TEST_F(InsertCollectivesTest, LowersToTheCollectiveThatDoesIt) {
  ExpectRewrite(InsertCollectives, R"(
    module @m mesh<dp=2, tp=2>
    func @f(%x: f32[8@dp, 16] partial(tp), %y: f32[8@tp, 16], %z: f32[8, 16]) {
      // CHECK: %a = comm.reduce_scatter(%x) {axes = [tp]} @comm : f32[8@dp, 16@tp]
      // CHECK: %b = comm.all_to_all(%y) {axes = [tp]} @comm : f32[8, 16@tp]
      // CHECK: %c = comm.slice(%z) {axes = [tp]} : f32[8@tp, 16]
      %a = comm.convert(%x) {axes = [tp]} : f32[8@dp, 16@tp]
      %b = comm.convert(%y) {axes = [tp]} : f32[8, 16@tp]
      %c = comm.convert(%z) {axes = [tp]} : f32[8@tp, 16]
      return %a, %b, %c
    })");
  ASSERT_FALSE(results_.empty());
  EXPECT_THAT(results_[0].notes[0],
              HasSubstr("all_to_all 1 (tp)  all_reduce 0  reduce_scatter 1 (tp)  all_gather 0"));
}

TEST_F(InsertCollectivesTest, SharesWhatConversionsHaveInCommon) {
  ExpectRewrite(InsertCollectives, R"(
    module @m mesh<b=2, a=2>
    func @f(%x: f32[8@b, 16] partial(a)) {
      // CHECK: %p = comm.all_reduce(%x)
      // CHECK-NEXT: %q = comm.all_gather(%p)
      // CHECK-NEXT: %r = comm.slice(%p)
      // CHECK-NEXT: return
      %p = comm.convert(%x) {axes = [a]} : f32[8@b, 16]
      %q = comm.convert(%x) {axes = [b, a]} : f32[8, 16]
      %r = comm.convert(%x) {axes = [a]} : f32[8@b, 16@a]
      %s = comm.convert(%x) {axes = [b, a]} : f32[8, 16]
      return %p, %q, %r, %s
    })");
}

TEST_F(InsertCollectivesTest, GathersAgainInTheBackward) {
  ExpectRewrite(InsertCollectives, R"(
    module @m mesh<a=2>
    func @f(%w: f32[8@a]) {
      // CHECK: %p = comm.all_gather(%w)
      // CHECK: backward:
      // CHECK: %q = comm.all_gather(%w)
      %p = comm.convert(%w) {axes = [a]} : f32[8]
      %u = math.silu(%p) : f32[8]
    backward:
      %q = comm.convert(%w) {axes = [a]} : f32[8]
      %v = math.silu_grad(%q, %u) : f32[8]
      return %v
    })");
}

TEST_F(InsertCollectivesTest, StepsWithoutAPlacementInBetweenAreOneNode) {
  ExpectRewrite(InsertCollectives, R"(
    module @m mesh<c=2, b=2, a=2>
    func @f(%x: f32[8, 8@c.b]) {
      // CHECK: comm.reshard(%x) {axes = [a, b], steps = "slice a:->0; all_to_all b:1>0"} @comm : f32[8@b.a, 8@c]
      %y = comm.convert(%x) {axes = [b, a]} : f32[8@b.a, 8@c]
      return %y
    })");
}

PassContext Hierarchical(strategy::Toggle word) {
  PassContext context;
  context.strategy.hierarchical = word;
  return context;
}

// Two nodes of two: b crosses, a does not.
TEST_F(InsertCollectivesTest, TwoLevelsAcrossNodes) {
  ExpectRewrite(InsertCollectives, R"(
    module @m mesh<b=2, a=2; node=a>
    func @f(%x: f32[8, 16] partial(b, a), %y: f32[8@b.a, 16], %w: f32[3] partial(b, a),
            %z: f32[8, 16] partial(b, a)) {
      // CHECK: %[[S:.*]] = comm.reduce_scatter(%x) {axes = [{{.*}}]} @comm : f32[8@{{.*}}, 16] partial(b)
      // CHECK: %[[R:.*]] = comm.all_reduce(%[[S]]) {axes = [b]}
      // CHECK: %p = comm.all_gather(%[[R]]) {axes = [{{.*}}]} @comm : f32[8, 16]
      // CHECK: %q = comm.reduce_scatter(%z) {axes = [a, b], steps = "reduce_scatter a:sum>1; reduce_scatter b:sum>1"}
      // CHECK: %r = comm.all_to_all(%y) {axes = [a, b], steps = "all_to_all a:0>1; all_to_all b:0>1"}
      // CHECK: %s = comm.all_gather(%y) {axes = [b, a], steps = "all_gather b:0>-; all_gather a:0>-"}
      // CHECK: %t = comm.all_reduce(%w) {axes = [b, a]}
      %p = comm.convert(%x) {axes = [b, a]} : f32[8, 16]
      %q = comm.convert(%z) {axes = [b, a]} : f32[8, 16@b.a]
      %r = comm.convert(%y) {axes = [b, a]} : f32[8, 16@b.a]
      %s = comm.convert(%y) {axes = [b, a]} : f32[8, 16]
      %t = comm.convert(%w) {axes = [b, a]} : f32[3]
      return %p, %q, %r, %s, %t
    })",
                Hierarchical(strategy::Toggle::kOn));
  EXPECT_THAT(results_[0].notes[1], HasSubstr("5 of them leave a node of 2, 4 of these in two levels"));
}

// Little data: an all_reduce saves hops between nodes; an all_to_all of one peer outside does not pay for its
// second level.
TEST_F(InsertCollectivesTest, LevelsByCost) {
  constexpr char kText[] = R"(
    module @m mesh<b=2, a=2; node=a>
    func @f(%x: f32[8, 16] partial(b, a)) {
      // CHECK: comm.reduce_scatter(%x)
      // CHECK: comm.all_reduce
      // CHECK: comm.all_gather
      %p = comm.convert(%x) {axes = [b, a]} : f32[8, 16]
      return %p
    })";
  ExpectRewrite(InsertCollectives, kText, Hierarchical(strategy::Toggle::kAuto));
  ExpectRewrite(InsertCollectives, R"(
    module @m mesh<b=2, a=2; node=a>
    func @f(%x: f32[8, 16] partial(b, a)) {
      // CHECK: comm.all_reduce(%x)
      %p = comm.convert(%x) {axes = [b, a]} : f32[8, 16]
      return %p
    })",
                Hierarchical(strategy::Toggle::kOff));
  // Sixteen peers in nodes of four: 12 messages across become 3.
  ExpectRewrite(InsertCollectives, R"(
    module @m mesh<b=4, a=4; node=a>
    func @f(%x: f32[16@b.a, 16]) {
      // CHECK: steps = "all_to_all a:0>1; all_to_all b:0>1"
      %p = comm.convert(%x) {axes = [b, a]} : f32[16, 16@b.a]
      return %p
    })",
                Hierarchical(strategy::Toggle::kAuto));
  // Much data: the bytes across are the same, those inside come on top.
  runs_ = false;  // a thousand million bytes on sixteen ranks
  ExpectRewrite(InsertCollectives, R"(
    module @m mesh<b=4, a=4; node=a>
    func @f(%x: f32[16384@b.a, 16384]) {
      // CHECK: comm.all_to_all(%x) {axes = [b, a]} @comm
      %p = comm.convert(%x) {axes = [b, a]} : f32[16384, 16384@b.a]
      return %p
    })",
                Hierarchical(strategy::Toggle::kAuto));
}

TEST_F(InsertCollectivesTest, NothingToDo) {
  ExpectUnchanged(InsertCollectives, R"(
    module @m
    func @f(%x: f32[8]) {
      %y = math.silu(%x) : f32[8]
      return %y
    })");
}

}  // namespace
}  // namespace moe::passes
