// Plans with every fusion against the one-device reference.

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_replace.h"
#include "moe/base/status_matchers.h"
#include "moe/passes/builtin.h"
#include "moe/testing/equivalence.h"

namespace moe::passes {
namespace {

constexpr char kModel[] =
    "num_layers: 2 hidden_size: 32 num_attention_heads: 4 num_key_value_heads: 2 ffn_hidden_size: 48 "
    "vocab_size: 64 seq_length: 16 num_experts: 8 moe_router_topk: 2 moe_ffn_hidden_size: 16 "
    "first_dense_layers: 1 norm_topk_prob: true aux_loss_coeff: 0.02 z_loss_coeff: 0.002 init_std: 0.1 "
    "shared_expert_ffn_hidden_size: 24 ";

// The default pipeline with `fuse` where it belongs, before the phases are split.
std::string WithFuse() {
  std::string pipeline = DefaultPipeline();
  if (pipeline.find("fuse") != std::string::npos) return pipeline;
  return absl::StrReplaceAll(pipeline, {{"split-phases", "fuse,split-phases"}});
}

TEST(FuseEquivalenceTest, Gradients) {
  for (const std::string strategy : {"tp=2 dp=2 ep=2 sp zero=1", "pp=2 dp=2 ep=2 zero=3 microbatches=2"}) {
    SCOPED_TRACE(strategy);
    testing::EquivalenceCase c{"fused", kModel, strategy};
    c.steps = 3;
    c.passes = WithFuse();
    ASSERT_OK_AND_ASSIGN(const testing::EquivalenceResult r, testing::CheckEquivalence(c));
    EXPECT_LT(r.worst_gradient, 1e-9) << r.ToString();
    EXPECT_LT(r.worst_loss, 1e-9) << r.ToString();
    EXPECT_EQ(r.planned_peak, r.measured_peak);
  }
}

TEST(FuseEquivalenceTest, SinglePrecisionReplaysTheRouter) {
  testing::EquivalenceCase c{"fused", kModel, "dp=2 ep=2"};
  c.steps = 3;
  c.f32 = true;
  c.passes = WithFuse();
  ASSERT_OK_AND_ASSIGN(const testing::EquivalenceResult r, testing::CheckEquivalence(c));
  EXPECT_LT(r.worst_gradient, 1e-5) << r.ToString();
  EXPECT_LT(r.worst_loss, 1e-4) << r.ToString();
}

}  // namespace
}  // namespace moe::passes
