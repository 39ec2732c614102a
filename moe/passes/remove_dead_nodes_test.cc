#include "moe/passes/remove_dead_nodes.h"

#include "moe/testing/pass_test.h"

namespace moe::passes {
namespace {

class RemoveDeadNodesTest : public testing::PassTest {};

TEST_F(RemoveDeadNodesTest, RemovesWholeChainsAndKeepsArguments) {
  ExpectRewrite(ForEachFunction(RemoveDeadNodes), R"(
    module @m mesh<a=2>
    func @f(%x: f32[8], %unused: f32[8], %p: f32[8] partial(a)) {
      // CHECK: func @f(%x: f32[8], %unused: f32[8]
      // CHECK-NEXT: %y = math.scale(%x)
      // CHECK-NEXT: return %y
      %a = math.silu(%x) : f32[8]
      %b = math.add(%a, %x) : f32[8]
      %c = comm.all_reduce(%p) {axes = [a]} : f32[8]
      %y = math.scale(%x) {by = 2.0} : f32[8]
      %d = math.add(%y, %b) : f32[8]
      return %y
    })");
}

TEST_F(RemoveDeadNodesTest, OneUsedResultKeepsTheNode) {
  ExpectUnchanged(ForEachFunction(RemoveDeadNodes), R"(
    module @m
    func @f(%p: f32[2, 2, 4, 8], %mask: f32[2, 2, 4]) {
      %top, %expert = moe.top_k(%p, %mask) {k = 2} : f32[2, 2, 4, 2], s32[2, 2, 4, 2]
      return %expert
    })");
}

}  // namespace
}  // namespace moe::passes
