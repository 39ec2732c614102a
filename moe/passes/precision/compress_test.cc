#include "moe/passes/precision/compress.h"

#include <gmock/gmock.h>

#include "moe/testing/pass_test.h"

namespace moe::passes {
namespace {

using ::testing::HasSubstr;

class CompressTest : public testing::PassTest {
 protected:
  void SetUp() override { runs_ = false; }  // what travels narrower is not the same number
  static PassContext With(const std::string& words) {
    PassContext context;
    context.strategy = *strategy::ParseStrategy(words);
    return context;
  }
};

constexpr char kExchanges[] = R"(
    module @m mesh<ep=2, dp=2>
    state @w : f32[8@dp, 4] {kind = "parameter"}
    state @grad.w : f32[8@dp, 4] {kind = "gradient", of = "w"}
    func @chunk0(%t: f32[4@ep, 1, 8, 16], %e: s32[4@ep, 1, 8, 2], %s: s32[4@ep, 1, 8, 2], %p: f32[4@ep, 1, 8, 2],
                 %w: f32[8@dp, 4] {kind = "state", name = "w"},
                 %g: f32[8@dp, 4] {kind = "state", name = "grad.w"}, %x: f32[8, 4] partial(dp)) {
      // CHECK: %d = moe.dispatch(%t, %e, %s)
      %d = moe.dispatch(%t, %e, %s) {experts = 4, slots = 4, dropless = false} : f32[4, 4@ep, 1, 4, 16]
      %there = comm.all_to_all(%d) {axes = [ep]} @comm : f32[4@ep, 4, 1, 4, 16]
      %a = math.silu(%there) : f32[4@ep, 4, 1, 4, 16]
      %back = comm.all_to_all(%a) {axes = [ep]} @comm : f32[4, 4@ep, 1, 4, 16]
      %y = moe.combine(%back, %p, %e, %s) {dropless = false} : f32[4@ep, 1, 8, 16]
      %whole = comm.all_gather(%w) {axes = [dp]} @comm : f32[8, 4]
      %u = math.silu(%whole) : f32[8, 4]
      %part = comm.reduce_scatter(%x) {axes = [dp]} @comm : f32[8@dp, 4]
      %n = optim.accumulate(%g, %part) : f32[8@dp, 4]
      return %y, %u, %n {kind = "state", name = "grad.w"}
    })";

std::string WireOfNode(const Program& p, const std::string& name) {
  for (const Node* n : p.module->functions()[0]->Nodes()) {
    if (n->result_name() == name) return n->StringOr("wire", "");
  }
  return "no such node";
}

TEST_F(CompressTest, EachExchangeIsSwitchedByItsOwnWord) {
  const struct {
    const char *word, *node;
  } cases[] = {{"compress_dispatch", "there"},
               {"compress_combine", "back"},
               {"compress_gather", "whole"},
               {"compress_grad", "part"}};
  for (const auto& on : cases) {
    ExpectRewrite(Compress, kExchanges, With(std::string(on.word) + "=f8"));
    for (const auto& c : cases) {
      EXPECT_EQ(WireOfNode(program_, c.node), &on == &c ? "f8e4m3" : "") << on.word << " " << c.node;
    }
  }
}

TEST_F(CompressTest, GradientsOfDispatchAndCombineToo) {
  ExpectRewrite(Compress, R"(
    module @m mesh<ep=2>
    func @chunk0(%dy: f32[4@ep, 1, 8, 16], %e: s32[4@ep, 1, 8, 2], %s: s32[4@ep, 1, 8, 2], %p: f32[4@ep, 1, 8, 2]) {
    backward:
      %do = moe.combine_do(%dy, %p, %e, %s) {experts = 4, slots = 4, dropless = false} : f32[4, 4@ep, 1, 4, 16]
      // CHECK: %there = comm.all_to_all(%do) {axes = [ep], wire = "bf16"}
      %there = comm.all_to_all(%do) {axes = [ep]} @comm : f32[4@ep, 4, 1, 4, 16]
      %a = math.silu(%there) : f32[4@ep, 4, 1, 4, 16]
      // CHECK: %back = comm.all_to_all(%a) {axes = [ep], wire = "f8e4m3"}
      %back = comm.all_to_all(%a) {axes = [ep]} @comm : f32[4, 4@ep, 1, 4, 16]
      %dx = moe.undispatch(%back, %e, %s) {dropless = false} : f32[4@ep, 1, 8, 16]
      return %dx
    })",
                With("compress_combine=bf16 compress_dispatch=f8"));
  EXPECT_THAT(results_[0].notes[0], HasSubstr("combine bf16 1   dispatch f8 1"));
}

// dispatcher=allgather: tokens are gathered, what the experts make of them is reduced. Routing stays whole,
// and so does a gather that the router reads as well.
TEST_F(CompressTest, TokensThatAreGatheredAndReduced) {
  ExpectRewrite(Compress, R"(
    module @m mesh<ep=2>
    func @chunk0(%t: f32[4@ep, 1, 8, 16], %u: f32[4@ep, 1, 8, 16], %e: s32[4, 1, 8, 2], %s: s32[4, 1, 8, 2],
                 %p: f32[4@ep, 1, 8, 2], %o: f32[4@ep, 4, 1, 4, 16], %dy: f32[4@ep, 1, 8, 16],
                 %dd: f32[4@ep, 4, 1, 4, 16]) {
      // CHECK: %all = comm.all_gather(%t) {axes = [ep], wire = "f8e4m3"}
      %all = comm.all_gather(%t) {axes = [ep]} @comm : f32[4, 1, 8, 16]
      %d = moe.dispatch(%all, %e, %s) {experts = 4, slots = 4, dropless = false} place<e=ep> : f32[4@ep, 4, 1, 4, 16]
      // CHECK: %more = comm.all_gather(%u) {axes = [ep]} @comm
      %more = comm.all_gather(%u) {axes = [ep]} @comm : f32[4, 1, 8, 16]
      %d2 = moe.dispatch(%more, %e, %s) {experts = 4, slots = 4, dropless = false} place<e=ep> : f32[4@ep, 4, 1, 4, 16]
      %r = math.silu(%more) : f32[4, 1, 8, 16]
      // CHECK: %probability = comm.all_gather(%p) {axes = [ep]} @comm
      %probability = comm.all_gather(%p) {axes = [ep]} @comm : f32[4, 1, 8, 2]
      %c = moe.combine(%o, %probability, %e, %s) {dropless = false} place<e=ep> : f32[4, 1, 8, 16] partial(ep)
      %y = math.reshape(%c) {eq = "b c t h -> b (c t) h", extents = ["c=1", "t=8"]} : f32[4, 8, 16] partial(ep)
      // CHECK: comm.reduce_scatter(%y) {axes = [ep], wire = "bf16"}
      %mine = comm.reduce_scatter(%y) {axes = [ep]} @comm : f32[4@ep, 8, 16]
    backward:
      // CHECK: comm.all_gather(%dy) {axes = [ep], wire = "bf16"}
      %g = comm.all_gather(%dy) {axes = [ep]} @comm : f32[4, 1, 8, 16]
      %do = moe.combine_do(%g, %probability, %e, %s) {experts = 4, slots = 4, dropless = false} place<e=ep> : f32[4@ep, 4, 1, 4, 16]
      %dp = moe.combine_dp(%o, %g, %e, %s) {dropless = false} place<e=ep> : f32[4, 1, 8, 2] partial(ep)
      %dt = moe.undispatch(%dd, %e, %s) {dropless = false} place<e=ep> : f32[4, 1, 8, 16] partial(ep)
      // CHECK: comm.reduce_scatter(%dt) {axes = [ep], wire = "f8e4m3"}
      %dmine = comm.reduce_scatter(%dt) {axes = [ep]} @comm : f32[4@ep, 1, 8, 16]
      return %d, %d2, %r, %mine, %do, %dp, %dmine
    })",
                With("compress_combine=bf16 compress_dispatch=f8"));
  EXPECT_THAT(results_[0].notes[0], HasSubstr("combine bf16 2   dispatch f8 2"));
}

TEST_F(CompressTest, WhatIsAsNarrowAlreadyStays) {
  ExpectUnchanged(Compress, R"(
    module @m mesh<dp=2>
    state @w : f32[8@dp, 4] {kind = "parameter"}
    func @chunk0(%w: f32[8@dp, 4] {kind = "state", name = "w"}) {
      %c = math.cast(%w) {dtype = "bf16"} : bf16[8@dp, 4]
      %whole = comm.all_gather(%c) {axes = [dp]} @comm : bf16[8, 4]
      return %whole
    })",
                  With("compress_gather=bf16"));
  EXPECT_THAT(results_[0].notes[0], HasSubstr("gather 1 as narrow already"));
}

}  // namespace
}  // namespace moe::passes
