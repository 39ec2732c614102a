#include "moe/model/config.h"

#include "moe/base/file.h"
#include "moe/base/status_matchers.h"

namespace moe::model {
namespace {

using ::testing::HasSubstr;

constexpr char kSmall[] = R"(
  num_layers: 2 hidden_size: 16 num_attention_heads: 4 ffn_hidden_size: 32 vocab_size: 30 seq_length: 8
  num_experts: 4 moe_router_topk: 2 capacity_factor: 1.1
)";

TEST(ModelConfig, DefaultsAreResolved) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig c, ParseModelConfig(kSmall));
  EXPECT_EQ(c.num_key_value_heads(), 4);
  EXPECT_EQ(c.head_dim(), 4);
  EXPECT_EQ(c.moe_ffn_hidden_size(), 32);
  EXPECT_EQ(c.vocab_blocks(), 2);  // 30 = 2 x 15
  EXPECT_EQ(c.aux_loss_scope(), "microbatch");
  EXPECT_EQ(c.dtype(), "f32");
  EXPECT_EQ(SlotsPerExpert(c), 5);  // ceil(1.1 x 8 x 2 / 4)
}

TEST(ModelConfig, CanonicalTextParsesBack) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig c, ParseModelConfig(kSmall));
  ASSERT_OK_AND_ASSIGN(const ModelConfig again, ParseModelConfig(ModelConfigToText(c)));
  EXPECT_EQ(again.SerializeAsString(), c.SerializeAsString());
}

TEST(ModelConfig, AllUnknownFieldsWithPlaceAndNearestName) {
  ExpectError(ParseModelConfig("num_layers: 2\nhiden_size: 16\n  capcity_factor: 2\n", "m.textproto"),
              absl::StatusCode::kInvalidArgument, "2 problems",
              "m.textproto:2:", "unknown field 'hiden_size'", "'hidden_size'",
              "m.textproto:3:", "'capacity_factor'");
}

TEST(ModelConfig, SyntaxErrorsHaveAPlace) {
  ExpectError(ParseModelConfig("num_layers: 2\nhidden_size: {", "m"), absl::StatusCode::kInvalidArgument,
              "m:2:");
  ExpectError(ParseModelConfig("num_layers: \"two\"", "m"), absl::StatusCode::kInvalidArgument, "m:1:13");
  ExpectError(ParseModelConfig("num_layers: 1 num_layers: 2", "m"), absl::StatusCode::kInvalidArgument,
              "num_layers");
  ExpectError(ParseModelConfig(std::string("\0\xff{{{", 5), "m"), absl::StatusCode::kInvalidArgument, "m:1:");
}

TEST(ModelConfig, AllProblemsAtOnce) {
  ExpectError(ParseModelConfig(R"(num_layers: 0 hidden_size: 16 num_attention_heads: 4 num_key_value_heads: 3
                                  ffn_hidden_size: 32 vocab_size: 30 seq_length: 8 vocab_blocks: 4
                                  num_experts: 4 moe_router_topk: 5 routing_groups_per_sequence: 3
                                  aux_loss_scope: "batch" capacity_factor: -1 dtype: "f16")"),
              absl::StatusCode::kInvalidArgument, "8 problems", "num_layers = 0", "num_key_value_heads = 3",
              "vocab_blocks = 4 does not divide vocab_size = 30",
              "moe_router_topk = 5 exceeds num_experts = 4", "routing_groups_per_sequence = 3",
              "capacity_factor = -1", "sequence, microbatch, global_batch", "legal are f32, f64");
}

TEST(ModelConfig, AbsurdSizesAreRefused) {
  ExpectError(ParseModelConfig(
                  "num_layers: 9000000000000000000 hidden_size: 9000000000000000000 num_attention_heads: 1 "
                  "ffn_hidden_size: 1 vocab_size: 8 seq_length: 8"),
              absl::StatusCode::kInvalidArgument, "num_layers = 9000000000000000000", "hidden_size");
  ExpectError(ParseModelConfig(
                  "num_layers: 1 hidden_size: 2000000000 num_attention_heads: 1 ffn_hidden_size: 2000000000 "
                  "vocab_size: 8 seq_length: 8"),
              absl::StatusCode::kInvalidArgument, "2^50");
}

TEST(ModelConfig, ATop1RouterMustNotBeNormalised) {
  ExpectError(ParseModelConfig(std::string(kSmall) + " norm_topk_prob: true moe_router_topk: 1"),
              absl::StatusCode::kInvalidArgument, "moe_router_topk");
}

TEST(ModelConfig, DropShareOfABalancedRouter) {
  ModelConfig c = *ParseModelConfig(kSmall);
  c.set_capacity_factor(0);
  EXPECT_EQ(ExpectedDropShare(c), 0);
  c.set_capacity_factor(100);
  EXPECT_EQ(SlotsPerExpert(c), 8);  // never more than one per token
  // Two choices among two experts with one slot: loads 0 1 2 with 1/4 1/2 1/4, so 1/4 of one is dropped.
  c.set_seq_length(1), c.set_num_experts(2), c.set_capacity_factor(0.5);
  EXPECT_NEAR(ExpectedDropShare(c), 0.25, 1e-12);
}

TEST(ModelConfig, ShippedModelsLoad) {
  const std::string dir = "testdata/models";
  ASSERT_OK_AND_ASSIGN(const std::vector<std::string> files, ListFolder(dir));
  int models = 0;
  for (const std::string& file : files) {
    if (file.find(".textproto") == std::string::npos) continue;
    ++models;
    EXPECT_OK(LoadModelConfig(JoinPath(dir, file)));
  }
  EXPECT_GE(models, 8);
  ASSERT_OK_AND_ASSIGN(const ModelConfig tiny, LoadModelConfig(dir + "/tiny_moe.textproto"));
  EXPECT_EQ(SlotsPerExpert(tiny), 40);
  EXPECT_LT(ExpectedDropShare(tiny), 0.03);
  EXPECT_THAT(DescribeModel(tiny),
              HasSubstr("tiny_moe: 4 layers, hidden 128, 8 heads (4 kv), 8 experts top-2 ffn 192"));
  EXPECT_GT(CountParameters(tiny).total, 2'000'000);
  EXPECT_LT(CountParameters(tiny).total, 3'000'000);
  ASSERT_OK_AND_ASSIGN(const ModelConfig mixtral, LoadModelConfig(dir + "/mixtral_8x22b.textproto"));
  EXPECT_NEAR(CountParameters(mixtral).total, 141e9, 0.5e9);
  EXPECT_NEAR(CountParameters(mixtral).active, 39e9, 0.5e9);
  ASSERT_OK_AND_ASSIGN(const ModelConfig m30, LoadModelConfig(dir + "/moe_30b.textproto"));
  EXPECT_NEAR(CountParameters(m30).total, 30e9, 1e9);
}

}  // namespace
}  // namespace moe::model
