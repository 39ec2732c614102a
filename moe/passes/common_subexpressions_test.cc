#include "moe/passes/common_subexpressions.h"

#include "moe/testing/pass_test.h"

namespace moe::passes {
namespace {

class CommonSubexpressionsTest : public testing::PassTest {};

TEST_F(CommonSubexpressionsTest, MergesChainsAndDecisions) {
  ExpectRewrite(ForEachFunction(MergeCommonSubexpressions), R"(
    module @m
    func @f(%x: f32[2, 2, 4, 8], %mask: f32[2, 2, 4]) {
      // CHECK: %[[S:.*]] = nn.softmax(%x)
      // CHECK-NOT: nn.softmax
      // CHECK: %[[T:.*]], %[[E:.*]] = moe.top_k(%[[S]], %mask)
      // CHECK-NOT: moe.top_k
      // CHECK: return %[[T]],
      // CHECK-NEXT: %[[E]],
      // CHECK-NEXT: %[[T]]
      %a = nn.softmax(%x) : f32[2, 2, 4, 8]
      %b = nn.softmax(%x) : f32[2, 2, 4, 8]
      %t, %e = moe.top_k(%a, %mask) {k = 2} : f32[2, 2, 4, 2], s32[2, 2, 4, 2]
      %u, %f = moe.top_k(%b, %mask) {k = 2} : f32[2, 2, 4, 2], s32[2, 2, 4, 2]
      return %t, %f, %u
    })");
}

TEST_F(CommonSubexpressionsTest, AttributesPlacementAndPhaseTellNodesApart) {
  ExpectUnchanged(ForEachFunction(MergeCommonSubexpressions), R"(
    module @m mesh<a=2>
    func @f(%x: f32[8]) {
      %a = math.scale(%x) {by = 2.0} place<> : f32[8]
      %b = math.scale(%x) {by = -2.0} place<> : f32[8]
      %c = comm.slice(%x) {axes = [a]} : f32[8@a]
      %d = comm.zero(%x) {axes = [a]} : f32[8] partial(a)
    backward:
      %e = math.scale(%x) {by = 2.0} place<> : f32[8]
      return %a, %b, %c, %d, %e
    })");
}

TEST_F(CommonSubexpressionsTest, CollectivesMergeWithinAPhaseOnly) {
  ExpectRewrite(ForEachFunction(MergeCommonSubexpressions), R"(
    module @m mesh<a=2>
    func @f(%x: f32[8@a]) {
      // CHECK: %[[A:.*]] = comm.all_gather(%x)
      // CHECK-NEXT: backward:
      // CHECK-NEXT: %[[B:.*]] = comm.all_gather(%x)
      // CHECK-NEXT: return %[[A]],
      // CHECK-NEXT: %[[A]],
      // CHECK-NEXT: %[[B]]
      %a = comm.all_gather(%x) {axes = [a]} : f32[8]
      %b = comm.all_gather(%x) {axes = [a]} : f32[8]
    backward:
      %c = comm.all_gather(%x) {axes = [a]} : f32[8]
      return %a, %b, %c
    })");
}

TEST_F(CommonSubexpressionsTest, UpdatesOfStateStay) {
  ExpectUnchanged(ForEachFunction(MergeCommonSubexpressions), R"(
    module @m
    func @f(%s: f32[8], %x: f32[8]) {
      %a = optim.accumulate(%s, %x) : f32[8]
      %b = optim.accumulate(%s, %x) : f32[8]
      %c = math.silu(%x) : f32[8]
      %d = math.silu(%x) : f32[8]
      %e = optim.accumulate(%d, %c) : f32[8]
      %g = optim.accumulate(%c, %x) : f32[8]
      return %a, %b, %e, %g
    })");
}

}  // namespace
}  // namespace moe::passes
