#include "moe/passes/precision/mixed_precision.h"

#include <gmock/gmock.h>

#include <set>

#include "moe/base/status_matchers.h"
#include "moe/ir/state.h"
#include "moe/model/transformer.h"
#include "moe/passes/autodiff.h"
#include "moe/strategy/fold.h"
#include "moe/testing/pass_test.h"

namespace moe::passes {
namespace {

using ::testing::HasSubstr;

class MixedPrecisionTest : public testing::PassTest {
 protected:
  void SetUp() override { runs_ = false; }  // bf16 is not the same number
  static PassContext To(const std::string& dtype) {
    PassContext context;
    EXPECT_TRUE(strategy::ParseChoice(dtype, &context.strategy.precision));
    return context;
  }
};

constexpr char kLayer[] = R"(
    module @m
    state @w : f32[4,3] {kind = "parameter", role = "up", class = "dense"}
    state @n : f32[4] {kind = "parameter", role = "norm", class = "dense"}
    state @r : f32[4,3] {kind = "parameter", role = "router", class = "dense"}
    state @grad.w : f32[4,3] {kind = "gradient", of = "w"}
    func @step(%x: f32[2,5,4], %w: f32[4,3] {kind = "state", name = "w"}, %n: f32[4] {kind = "state", name = "n"},
               %r: f32[4,3] {kind = "state", name = "r"}, %g: f32[4,3] {kind = "state", name = "grad.w"}) {
      // The norm's weight stays f32.
      // CHECK: %x.bf16 = math.cast(%x)
      // CHECK: %h = nn.rms_norm(%x.bf16, %n) {eps = 1e-05} : bf16[2, 5, 4]
      %h = nn.rms_norm(%x, %n) {eps = 1e-05} : f32[2,5,4]
      // CHECK: %w.bf16 = math.cast(%w)
      // CHECK: %y = math.einsum(%h, %w.bf16) {eq = "b s h, h f -> b s f"} : bf16[2, 5, 3]
      %y = math.einsum(%h, %w) {eq = "b s h, h f -> b s f"} : f32[2,5,3]
      // A router reads wide.
      // CHECK: %h.f32 = math.cast(%h)
      // CHECK: %l = math.einsum(%h.f32, %r) {eq = "b s h, h f -> b s f"} : f32[2, 5, 3]
      %l = math.einsum(%h, %r) {eq = "b s h, h f -> b s f"} : f32[2,5,3]
    backward:
      // The gradient of a parameter is multiplied narrow and summed wide.
      // CHECK: %dw = math.einsum(%h, %y) {dtype = "f32", eq = "b s h, b s f -> h f"} : f32[4, 3]
      %dw = math.einsum(%h, %y) {eq = "b s h, b s f -> h f"} : f32[4,3]
      // CHECK-NEXT: optim.accumulate(%g, %dw) : f32[4, 3]
      %gn = optim.accumulate(%g, %dw) : f32[4,3]
      // Cast again, not kept.
      // CHECK: %[[W:.*]] = math.cast(%w)
      // CHECK: %dx = math.einsum(%y, %[[W]]) {eq = "b s f, h f -> b s h"} : bf16[2, 5, 4]
      %dx = math.einsum(%y, %w) {eq = "b s f, h f -> b s h"} : f32[2,5,4]
      return %l, %gn {kind = "state", name = "grad.w"}, %dx
    }
    func @update(%q: f32[]) {
    update:
      %c.norm, %c.factor, %c.finite = optim.clip(%q) {max_norm = 1.0} : f32[], f32[], f32[]
      return %c.norm
    })";

TEST_F(MixedPrecisionTest, NarrowWhereTheWorkIs) { ExpectRewrite(MixedPrecision, kLayer, To("bf16")); }

TEST_F(MixedPrecisionTest, NothingWithoutTheWord) {
  ExpectUnchanged(MixedPrecision, "module @m\nfunc @step(%x: f32[2]) {\n return %x\n }");
}

TEST_F(MixedPrecisionTest, Refuses) {
  PassContext f8;
  f8.options["to"] = "f8";
  ExpectPassError(MixedPrecision, kLayer, absl::StatusCode::kInvalidArgument, {"'f8'", "bf16 and f16"}, f8);
}

// The whole model: what is saved for the backward, the router, losses and gradients.
TEST(MixedPrecisionModelTest, MastersGradientsAndRoutersStayWide) {
  const model::BuildOptions options{.global_batch = 4, .microbatches = 1};
  model::ModelConfig config;
  config.set_num_layers(2);
  config.set_hidden_size(32);
  config.set_num_attention_heads(4);
  config.set_num_key_value_heads(2);
  config.set_ffn_hidden_size(48);
  config.set_vocab_size(64);
  config.set_seq_length(16);
  config.set_num_experts(8);
  config.set_moe_router_topk(2);
  config.set_moe_ffn_hidden_size(16);
  config.set_first_dense_layers(1);
  config.set_aux_loss_coeff(0.02);
  for (const std::string dtype : {"bf16", "f16"}) {
    SCOPED_TRACE(dtype);
    Program program;
    ASSERT_OK_AND_ASSIGN(program.module, model::BuildModel(config, options));
    ASSERT_OK(Autodiff(program, {}).status());
    PassContext context;
    EXPECT_TRUE(strategy::ParseChoice(dtype, &context.strategy.precision));
    ASSERT_OK_AND_ASSIGN(const bool changed, MixedPrecision(program, context));
    EXPECT_TRUE(changed);
    for (const auto& s : program.module->states()) EXPECT_EQ(s->type.dtype, DType::kF32) << s->name;
    const Function& step = *program.module->Find("step");
    std::set<std::string> narrow, wide;
    for (const Node* n : step.Nodes()) {
      if (IsFloat(n->type().dtype)) (ByteSize(n->type().dtype) == 2 ? narrow : wide).insert(n->op_name());
      if (!n->Is("optim.accumulate")) continue;
      // Nothing that is summed over microbatches was rounded to the narrow type on its way out of a
      // contraction.
      EXPECT_FALSE(n->operand(1).node->Is("math.cast") &&
                   IsFloat(n->operand(1).node->operand(0).type().dtype))
          << n->result_name();
    }
    for (const char* op : {"math.einsum", "nn.attention", "nn.attention_grad", "nn.swiglu", "nn.rms_norm",
                           "moe.dispatch", "moe.combine", "moe.undispatch"}) {
      EXPECT_EQ(narrow.count(op), 1) << op;
    }
    for (const char* op :
         {"nn.softmax", "moe.top_k", "nn.head_stats", "moe.combine_dp", "nn.merge_sum_exp"}) {
      EXPECT_EQ(wide.count(op), 1) << op;
      EXPECT_EQ(narrow.count(op), 0) << op;
    }
    // f16 alone scales its losses, and the update takes the scale away.
    EXPECT_EQ(FindArg(step, Binding::kScalar, "loss_scale") != nullptr, dtype == "f16");
    EXPECT_EQ(FindArg(*program.module->Find("update"), Binding::kScalar, "inv_loss_scale") != nullptr,
              dtype == "f16");
  }
}

// Under ZeRO-1 and -2 the step reads narrow copies, which the update writes; what is read wide has none.
TEST(WorkingCopies, StandWhereOptimizerStateIsSharded) {
  for (const char* strategy : {"dp=2 bf16", "dp=2 zero=1 bf16 grads=bf16", "dp=2 zero=3 bf16"}) {
    SCOPED_TRACE(strategy);
    PassContext context;
    ASSERT_OK_AND_ASSIGN(context.strategy, strategy::ParseStrategy(strategy));
    const bool copies = context.strategy.zero == 1;
    model::ModelConfig model = *model::ParseModelConfig(R"(
      num_layers: 2 hidden_size: 16 num_attention_heads: 4 num_key_value_heads: 2 num_experts: 4
      moe_router_topk: 2 moe_ffn_hidden_size: 8 ffn_hidden_size: 8 vocab_size: 32 seq_length: 8)");
    Program program;
    ASSERT_OK_AND_ASSIGN(program.module, model::BuildModel(model, model::BuildOptions()));
    ASSERT_OK_AND_ASSIGN(program.module->mesh(), strategy::FoldMesh(context.strategy, 2));
    ASSERT_OK(Autodiff(program, context).status());
    ASSERT_OK(MixedPrecision(program, context).status());
    const Module& m = *program.module;
    int found = 0;
    for (const auto& s : m.states()) {
      const std::string kind = AttrString(s->attributes, "kind");
      if (kind == "gradient") {
        EXPECT_EQ(s->type.dtype, copies ? DType::kBF16 : DType::kF32) << s->name;
      }
      if (kind != "working_copy") continue;
      ++found;
      const std::string of = AttrString(s->attributes, "of");
      EXPECT_EQ(s->type.dtype, DType::kBF16);
      EXPECT_EQ(s->type.dims, m.FindState(of)->type.dims);
      EXPECT_NE(FindArg(*m.Find("step"), Binding::kState, s->name), nullptr) << s->name;
      EXPECT_EQ(FindArg(*m.Find("step"), Binding::kState, of), nullptr) << of;
      EXPECT_NE(AttrString(m.FindState(of)->attributes, "role"), "router");
      EXPECT_NE(AttrString(m.FindState(of)->attributes, "role"), "norm");
      const Function& update = *m.Find("update");
      int written = 0;
      for (int r = 0; r < update.num_results(); ++r) {
        if (update.result_binding(r).name != s->name) continue;
        ++written;
        EXPECT_TRUE(update.result(r).node->Is("math.cast"));
        EXPECT_TRUE(update.result(r).node->operand(0).node->Is("optim.adamw"));
      }
      EXPECT_EQ(written, 1) << s->name;
    }
    EXPECT_EQ(found > 0, copies);
  }
}

TEST(NarrowGradients, AreThoseOfTheComputation) {
  for (const char* strategy : {"grads=bf16", "f16 grads=bf16"}) {
    PassContext context;
    ASSERT_OK_AND_ASSIGN(context.strategy, strategy::ParseStrategy(strategy));
    Program program;
    program.module = std::make_unique<Module>("m");
    EXPECT_THAT(MixedPrecision(program, context).status().message(), HasSubstr("gradients summed in bf16"));
  }
}

}  // namespace
}  // namespace moe::passes
