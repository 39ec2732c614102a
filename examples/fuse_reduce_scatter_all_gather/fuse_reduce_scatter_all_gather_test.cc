#include <gtest/gtest.h>

#include "moe/testing/pass_test.h"

namespace moe::examples {
namespace {

class FuseReduceScatterAllGatherTest : public testing::PassTest {};

TEST_F(FuseReduceScatterAllGatherTest, SameAxes) {
  ExpectRewrite("fuse-rs-ag", R"(
    module @m mesh<tp=4> {}
    func @f(%x: f32[8, 8] partial(tp)) {
      // CHECK: %[[S:.*]] = comm.all_reduce(%x) {axes = [tp]} @comm : f32[8, 8]
      // CHECK: return %[[S]]
      %a = comm.reduce_scatter(%x) {axes = [tp], dim = 0}
      %b = comm.all_gather(%a) {axes = [tp]}
      return %b
    })");
}

TEST_F(FuseReduceScatterAllGatherTest, TheShardIsUsedElsewhere) {
  ExpectRewrite("fuse-rs-ag", R"(
    module @m mesh<tp=4> {}
    func @f(%x: f32[8, 8] partial(tp)) {
      // CHECK-NOT: comm.all_reduce
      %a = comm.reduce_scatter(%x) {axes = [tp], dim = 0}
      %b = comm.all_gather(%a) {axes = [tp]}
      return %a, %b
    })");
}

}  // namespace
}  // namespace moe::examples
