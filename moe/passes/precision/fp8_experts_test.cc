#include "moe/passes/precision/fp8_experts.h"

#include <gmock/gmock.h>

#include <string>

#include "moe/base/status_matchers.h"
#include "moe/cost/targets.h"
#include "moe/passes/autodiff.h"
#include "moe/passes/pass.h"
#include "moe/testing/pass_test.h"

namespace moe::passes {
namespace {

using ::testing::HasSubstr;

PassContext With(const std::string& words, const std::string& target = "cpu") {
  PassContext context;
  context.strategy = *strategy::ParseStrategy(words);
  context.target = *cost::NamedTarget(target);
  return context;
}

class Fp8ExpertsTest : public testing::PassTest {
 protected:
  static void SetUpTestSuite() {
    RegisterPass({"fp8-experts", "", Fp8Experts});
    RegisterPass({"autodiff", "", Autodiff});
  }
};

constexpr char kExperts[] = R"(
    module @m
    state @w : f32[2,4,3] {kind = "parameter", role = "up", class = "expert"}
    state @s : f32[4,3] {kind = "parameter", role = "up", class = "dense"}
    func @step(%d: f32[2,1,1,6,4], %t: f32[1,6,4], %w: f32[2,4,3] {kind = "state", name = "w"},
               %s: f32[4,3] {kind = "state", name = "s"}) {
      // CHECK: %y = math.einsum(%d, %w) {eq = "e b c p h, e h f -> e b c p f", multiply = "f8e4m3"}
      %y = math.einsum(%d, %w) {eq = "e b c p h, e h f -> e b c p f"} : f32[2,1,1,6,3]
      // CHECK: %shared = math.einsum(%t, %s) {eq = "b t h, h f -> b t f"}
      %shared = math.einsum(%t, %s) {eq = "b t h, h f -> b t f"} : f32[1,6,3]
      %a = math.einsum(%y) {eq = "e b c p f ->"} : f32[]
      %b = math.einsum(%shared) {eq = "b t f ->"} : f32[]
      %loss = math.add(%a, %b) : f32[]
      return %loss {kind = "loss", name = "lm"}
    })";

TEST_F(Fp8ExpertsTest, ProductsOfExpertsAlone) {
  ExpectRewrite(Fp8Experts, kExperts, With("bf16 fp8_experts"));
  EXPECT_THAT(results_[0].notes[0], HasSubstr("1 products, and their gradients, in e4m3"));
  ExpectUnchanged(Fp8Experts, kExperts, With("bf16"));
}

TEST_F(Fp8ExpertsTest, GradientsInheritTheMark) {
  runs_ = false;  // autodiff adds a phase
  ExpectRewrite("fp8-experts,autodiff", R"(
    module @m
    state @v : f32[2,4,4] {kind = "parameter", role = "up", class = "expert"}
    state @w : f32[2,4,3] {kind = "parameter", role = "up", class = "expert"}
    func @step(%d: f32[2,1,1,6,4], %v: f32[2,4,4] {kind = "state", name = "v"},
               %w: f32[2,4,3] {kind = "state", name = "w"}) {
      %x = math.einsum(%d, %v) {eq = "e b c p h, e h f -> e b c p f"} : f32[2,1,1,6,4]
      %y = math.einsum(%x, %w) {eq = "e b c p h, e h f -> e b c p f"} : f32[2,1,1,6,3]
      // CHECK: backward:
      // CHECK: %d.x = math.einsum(%d.y, %w) {dual = "x", eq = "e b c p f, e h f -> e b c p h", multiply = "f8e4m3"}
      // CHECK: %d.w = math.einsum(%d.y, %x) {dual = "w", eq = "e b c p f, e b c p h -> e h f", multiply = "f8e4m3"}
      // CHECK: %d.v = math.einsum(%d.x, %d) {dual = "v", eq = "e b c p f, e b c p h -> e h f", multiply = "f8e4m3"}
      %loss = math.einsum(%y) {eq = "e b c p f ->"} : f32[]
      return %loss {kind = "loss", name = "lm"}
    })",
                With("bf16 fp8_experts"));
}

TEST_F(Fp8ExpertsTest, RefusesWhatHasNoSuchProducts) {
  PassContext f16 = With("f16");
  f16.strategy.fp8_experts = true;
  ExpectPassError(Fp8Experts, kExperts, absl::StatusCode::kInvalidArgument, {"legal with the word bf16"},
                  f16);
  ExpectPassError(Fp8Experts, kExperts, absl::StatusCode::kInvalidArgument,
                  {"target a100", "no products of e4m3"}, With("bf16 fp8_experts", "a100"));
}

}  // namespace
}  // namespace moe::passes
