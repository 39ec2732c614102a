#include "moe/passes/overlap/split_experts.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "moe/testing/pass_test.h"

namespace moe::passes {
namespace {

// Every rewrite is run before and after on two virtual devices, which must give the same.
class SplitExpertsTest : public testing::PassTest {
 protected:
  static PassContext Parts(int64_t parts) {
    PassContext context;
    context.strategy.moe_chunks = parts;
    return context;
  }
};

// Tokens travel to four experts on two ranks, are multiplied there, and travel back.
constexpr char kExperts[] = R"(
    module @m mesh<ep=2>
    func @f(%d: f32[4, 4@ep, 1, 4, 16], %w: f32[4@ep, 16, 8]) {
      // CHECK: %[[D0:[^,]*]], %[[D1:[^ ]*]] = moe.split_experts(%d) {chunks = 2, ways = 2}
      // CHECK: %[[R0:[^ ]*]] = comm.all_to_all(%[[D0]]) {axes = [ep], steps = "all_to_all ep:1>0"} @comm : f32[2@ep, 4, 1, 4, 16]
      // CHECK: %[[R1:[^ ]*]] = comm.all_to_all(%[[D1]]) {axes = [ep], steps = "all_to_all ep:1>0"} @comm : f32[2@ep, 4, 1, 4, 16]
      // CHECK: %[[W0:[^,]*]], %[[W1:[^ ]*]] = moe.split_experts(%w) {chunks = 2, ways = 2}
      // CHECK: %[[H0:[^ ]*]] = math.einsum(%[[R0]], %[[W0]])
      // CHECK: %[[H1:[^ ]*]] = math.einsum(%[[R1]], %[[W1]])
      // CHECK: %[[B0:[^ ]*]] = comm.all_to_all(%[[H0]])
      // CHECK: %[[B1:[^ ]*]] = comm.all_to_all(%[[H1]])
      // CHECK: %[[B:[^ ]*]] = moe.join_experts(%[[B0]], %[[B1]]) {chunks = 2, ways = 2}{{.*}} : f32[4, 4@ep, 1, 4, 8]
      // CHECK-NOT: comm.all_to_all
      // CHECK: return %[[B]]
      %there = comm.all_to_all(%d) {axes = [ep], steps = "all_to_all ep:1>0"} @comm : f32[4@ep, 4, 1, 4, 16]
      %h = math.einsum(%there, %w) {eq = "e b c p h, e h f -> e b c p f"} : f32[4@ep, 4, 1, 4, 8]
      %back = comm.all_to_all(%h) {axes = [ep], steps = "all_to_all ep:0>1"} @comm : f32[4, 4@ep, 1, 4, 8]
      return %back
    })";

TEST_F(SplitExpertsTest, ExchangesAndProductsGoInParts) { ExpectRewrite(SplitExperts, kExperts, Parts(2)); }

TEST_F(SplitExpertsTest, OnePartIsNoCut) { ExpectUnchanged(SplitExperts, kExperts, Parts(1)); }

TEST_F(SplitExpertsTest, PartsDivideTheExpertsOfARank) {
  ExpectPassError(SplitExperts, kExperts, absl::StatusCode::kInvalidArgument,
                  {"moe_chunks = 3 does not divide the 2 experts of a rank", "legal here: 1, 2"}, Parts(3));
}

// A node that reads a whole value between the exchanges, here a product for which experts are not a batch,
// gets the join.
TEST_F(SplitExpertsTest, OthersReadWholeValues) {
  ExpectRewrite(SplitExperts, R"(
    module @m mesh<ep=2>
    func @f(%d: f32[4, 4@ep, 1, 4, 16]) {
      // CHECK: %[[R0:[^ ]*]] = comm.all_to_all
      // CHECK: %[[R1:[^ ]*]] = comm.all_to_all
      // CHECK: %[[R:[^ ]*]] = moe.join_experts(%[[R0]], %[[R1]])
      // CHECK: %s = math.einsum(%[[R]], %[[R]])
      %there = comm.all_to_all(%d) {axes = [ep], steps = "all_to_all ep:1>0"} @comm : f32[4@ep, 4, 1, 4, 16]
      %s = math.einsum(%there, %there) {eq = "e b c p h, e b c q h -> b c p q"} : f32[4, 1, 4, 4] partial(ep)
      return %s
    })",
                Parts(2));
}

// Without experts that are exchanged there is nothing to cut.
TEST_F(SplitExpertsTest, NoExchangeNoCut) {
  ExpectUnchanged(SplitExperts, R"(
    module @m mesh<ep=2>
    func @f(%x: f32[4@ep, 8, 16], %w: f32[4@ep, 16, 8]) {
      %h = math.einsum(%x, %w) {eq = "e t h, e h f -> e t f"} : f32[4@ep, 8, 8]
      return %h
    })",
                  Parts(2));
}

}  // namespace
}  // namespace moe::passes
