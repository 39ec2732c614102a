#include "moe/passes/insert_collectives.h"

#include <gmock/gmock.h>

#include "moe/testing/pass_test.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

class InsertCollectivesTest : public PassTest {};

TEST_F(InsertCollectivesTest, LowersToTheCollectiveThatDoesIt) {
  ExpectRewrite(InsertCollectives, R"(
    module @m mesh<dp=2, tp=2>
    func @f(%x: f32[8@dp, 16] partial(tp), %y: f32[8@tp, 16], %z: f32[8, 16]) {
      // CHECK: %a = comm.reduce_scatter(%x) {axes = [tp], steps = "reduce_scatter tp:sum>1"} @comm : f32[8@dp, 16@tp]
      // CHECK: %b = comm.all_to_all(%y) {axes = [tp], steps = "all_to_all tp:0>1"} @comm : f32[8, 16@tp]
      // CHECK: %c = comm.slice(%z) {axes = [tp], steps = "slice tp:->0"} : f32[8@tp, 16]
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

TEST_F(InsertCollectivesTest, NothingToDo) {
  ExpectUnchanged(InsertCollectives, R"(
    module @m
    func @f(%x: f32[8]) {
      %y = math.silu(%x) : f32[8]
      return %y
    })");
}

}  // namespace
}  // namespace moe
