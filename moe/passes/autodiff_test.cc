#include "moe/passes/autodiff.h"

#include <set>

#include "moe/base/status_matchers.h"
#include "moe/ir/state.h"
#include "moe/ir/text.h"
#include "moe/ir/verifier.h"
#include "moe/model/transformer.h"

namespace moe::passes {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<Module> Parse(const std::string& body) {
  auto m = ParseModule(body);
  EXPECT_TRUE(m.ok()) << m.status();
  return m.ok() ? *std::move(m) : nullptr;
}

constexpr char kStates[] = R"(
module @m {beta1 = 0.9, clip_grad = 0.0}
state @w : f32[4,3] {kind = "parameter", role = "up", class = "dense"}
state @n : f32[4] {kind = "parameter", role = "norm", class = "dense", decay = false}
func @step(%x: f32[2,5,4] {kind = "batch", name = "x"}, %w: f32[4,3] {kind = "state", name = "w"},
           %n: f32[4] {kind = "state", name = "n"}) {
)";

TEST(Autodiff, WritesBackwardUpdateAndStates) {
  const auto m = Parse(std::string(kStates) + R"(
    %h = nn.rms_norm(%x, %n) {eps = 1e-05} : f32[2,5,4] at "layers.0.mlp"
    %y = math.einsum(%h, %w) {eq = "b s h, h f -> b s f"} : f32[2,5,3] at "layers.0.mlp"
    %l = math.einsum(%y, %y) {eq = "b s f, b s f ->"} : f32[] at "head"
    return %l {kind = "loss", name = "l"}
  })");
  ASSERT_NE(m, nullptr);
  ASSERT_OK(Differentiate(*m));
  EXPECT_OK(Verify(*m));
  const Function& step = *m->Find("step");
  // No loss is left; both gradients are accumulated, in the scope that uses the parameter.
  std::set<std::string> written;
  for (int i = 0; i < step.num_results(); ++i) {
    EXPECT_EQ(step.result_binding(i).kind, Binding::kState);
    written.insert(step.result_binding(i).name);
    EXPECT_TRUE(step.result(i).node->Is("optim.accumulate"));
    EXPECT_EQ(step.result(i).node->scope, "layers.0.mlp");
    EXPECT_EQ(step.result(i).node->phase, Phase::kBackward);
  }
  EXPECT_EQ(written, (std::set<std::string>{"grad.w", "grad.n"}));
  // d(x) is nobody's: it must be gone, and d(y) is a sum, hinted to be placed like y.
  const std::string text = PrintFunction(step);
  EXPECT_THAT(text, ::testing::Not(HasSubstr("rms_norm_dx")));
  EXPECT_THAT(text, HasSubstr("dual = \"w\""));
  EXPECT_THAT(text, HasSubstr("dual = \"y\""));
  for (const Node* n : step.Nodes()) EXPECT_TRUE(n->HasUses()) << n->result_name();

  const std::string update = PrintFunction(*m->Find("update"));
  EXPECT_THAT(update, HasSubstr("name = \"grad norm\""));
  for (const char* state : {"grad.w", "adam.m.w", "adam.v.n"})
    EXPECT_NE(m->FindState(state), nullptr) << state;
  EXPECT_EQ(AttrString(m->FindState("grad.n")->attributes, "reset"), "step");
}

TEST(Autodiff, AParameterThatReachesNoLossIsNamed) {
  const auto m = Parse(std::string(kStates) + R"(
    %h = nn.rms_norm(%x, %n) {eps = 1e-05} : f32[2,5,4]
    %y = math.einsum(%x, %w) {eq = "b s h, h f -> b s f"} : f32[2,5,3]
    %l = math.einsum(%h) {eq = "b s h ->"} : f32[]
    return %l {kind = "loss", name = "l"}
  })");
  ASSERT_NE(m, nullptr);
  ExpectError(Differentiate(*m), absl::StatusCode::kInvalidArgument, "no loss depends on w");
}

TEST(Autodiff, AnOpWithoutGradientOnTheWayIsNamed) {
  const auto m = Parse(std::string(kStates) + R"(
    %h = nn.rms_norm(%x, %n) {eps = 1e-05} : f32[2,5,4]
    %y = math.einsum(%h, %w) {eq = "b s h, h f -> b s f"} : f32[2,5,3]
    %r = math.reciprocal(%y) : f32[2,5,3] at "layers.0.mlp"
    %l = math.einsum(%r) {eq = "b s f ->"} : f32[]
    return %l {kind = "loss", name = "l"}
  })");
  ASSERT_NE(m, nullptr);
  ExpectError(Differentiate(*m), absl::StatusCode::kInvalidArgument, "%r", "layers.0.mlp", "math.reciprocal");
}

TEST(Autodiff, ItNeedsALossAndRunsOnce) {
  auto m = Parse(std::string(kStates) + "return }");
  ASSERT_NE(m, nullptr);
  ExpectError(Differentiate(*m), absl::StatusCode::kFailedPrecondition);
  model::ModelConfig c = *model::ParseModelConfig(
      "num_layers: 1 hidden_size: 8 num_attention_heads: 2 ffn_hidden_size: 8 vocab_size: 8 seq_length: 4");
  m = *model::BuildModel(c, {.global_batch = 2});
  EXPECT_OK(Differentiate(*m));
  ExpectError(Differentiate(*m), absl::StatusCode::kFailedPrecondition, "runs once");
}

// What later passes read off a differentiated transformer.
TEST(Autodiff, GradientsOfTheResidualStreamAreTagged) {
  model::ModelConfig c = *model::ParseModelConfig(
      R"(num_layers: 3 hidden_size: 8 num_attention_heads: 2 ffn_hidden_size: 8 vocab_size: 8
    seq_length: 4 num_experts: 4 moe_router_topk: 2 first_dense_layers: 1 capacity_factor: 1 tie_embeddings: true
    aux_loss_coeff: 0.1 z_loss_coeff: 0.1 shared_expert_ffn_hidden_size: 8)");
  const std::unique_ptr<Module> m = *model::BuildModel(c, {.global_batch = 2});
  ASSERT_OK(Differentiate(*m));
  ASSERT_OK(Verify(*m));
  const std::string text = PrintModule(*m);
  ASSERT_OK_AND_ASSIGN(const auto again, ParseModule(text));
  EXPECT_EQ(PrintModule(*again), text);
  int stream = 0, gradients = 0;
  for (const Node* n : m->Find("step")->Nodes()) {
    if (n->StringOr("tag", "") != "residual_stream") continue;
    (n->phase == Phase::kForward ? stream : gradients) += 1;
    // The gradient that leaves a layer is computed by that layer.
    if (n->phase == Phase::kBackward) {
      EXPECT_THAT(n->scope, ::testing::AnyOf(HasSubstr("layers."), "head"));
    }
  }
  EXPECT_EQ(stream, 7);
  EXPECT_EQ(gradients, 7);
  // The tied table gets its gradient from both ends, through one accumulator.
  int accumulators = 0;
  for (const Node* n : m->Find("step")->NodesOf("optim.accumulate")) {
    if (n->operand(0).name() != "grad.embedding") continue;
    ++accumulators;
    EXPECT_TRUE(n->operand(1).node->Is("math.add"));
    EXPECT_EQ(n->operand(1).node->operand(0).node->scope, "head");
    EXPECT_EQ(n->operand(1).node->operand(1).node->scope, "embedding");
  }
  EXPECT_EQ(accumulators, 1);
}

}  // namespace
}  // namespace moe::passes
