#include "moe/passes/schedule/split_phases.h"

#include <gtest/gtest.h>

#include "moe/base/status_matchers.h"
#include "moe/ir/state.h"
#include "moe/ir/text.h"
#include "moe/ir/verifier.h"

namespace moe::passes {
namespace {

TEST(SplitPhases, ResidualsAreExplicit) {
  Program program;
  ASSERT_OK_AND_ASSIGN(program.module, ParseModule(R"(
    module @m
    state @w : f32[4] {kind = "parameter"}
    state @grad.w : f32[4] {kind = "gradient", of = "w"}
    func @chunk0(%w: f32[4] {kind = "state", name = "w"}, %g: f32[4] {kind = "state", name = "grad.w"},
                 %x: f32[4] {kind = "batch", name = "x"}, %dy: f32[4] {kind = "boundary", name = "grad.0", peer = 1}) {
      %a = math.mul(%w, %x) : f32[4]
      %y = math.mul(%a, %a) : f32[4]
    backward:
      %da = math.mul(%dy, %a) : f32[4]
      %dw = math.mul(%da, %x) : f32[4]
      %dz = math.mul(%dw, %y) : f32[4]
      %n = optim.accumulate(%g, %dz) : f32[4]
      return %y {kind = "boundary", name = "act.0", peer = 1}, %n {kind = "state", name = "grad.w"}
    })"));
  ASSERT_OK_AND_ASSIGN(const bool changed, SplitPhases(program, {}));
  EXPECT_TRUE(changed);
  ASSERT_OK(Verify(*program.module));
  const Function &f = *program.module->Find("forward0"), &b = *program.module->Find("backward0");
  // %a is saved; %x, a batch, is an argument of both; %y, which is sent on anyway, is read from its boundary
  // slot.
  ASSERT_EQ(f.num_results(), 2);
  EXPECT_EQ(f.result_binding(0).name, "act.0");
  EXPECT_EQ(f.result_binding(1).kind, Binding::kResidual);
  EXPECT_EQ(f.result(1).name(), "a");
  EXPECT_NE(FindArg(b, Binding::kResidual, "a"), nullptr);
  EXPECT_NE(FindArg(b, Binding::kBatch, "x"), nullptr);
  EXPECT_NE(FindArg(b, Binding::kBoundary, "act.0"), nullptr);
  EXPECT_EQ(FindArg(b, Binding::kState, "w"), nullptr);
  EXPECT_EQ(FindArg(f, Binding::kBoundary, "grad.0"), nullptr);
  EXPECT_EQ(program.module->Find("chunk0"), nullptr);
}

}  // namespace
}  // namespace moe::passes
