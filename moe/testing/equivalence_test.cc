// Every strategy against the one-device reference: one line each. Columns: model, strategy words, batch. To
// add a strategy, add a line.
#include "moe/testing/equivalence.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "moe/base/status_matchers.h"

namespace moe {
namespace {

// Two layers (dense, MoE), hidden 32, 4 heads over 2 kv heads, vocabulary 64, 16 tokens.
constexpr char kBase[] =
    "num_layers: 2 hidden_size: 32 num_attention_heads: 4 num_key_value_heads: 2 ffn_hidden_size: 48 "
    "vocab_size: 64 "
    "seq_length: 16 num_experts: 8 moe_router_topk: 2 moe_ffn_hidden_size: 16 first_dense_layers: 1 "
    "norm_topk_prob: true aux_loss_coeff: 0.02 z_loss_coeff: 0.002 init_std: 0.1 ";
constexpr char kCapacity[] = "capacity_factor: 1.25 routing_groups_per_sequence: 4 ";
constexpr char kDropless[] = "aux_loss_scope: \"sequence\" ";
constexpr char kEightHeads[] =
    "num_layers: 2 hidden_size: 32 num_attention_heads: 8 num_key_value_heads: 2 ffn_hidden_size: 48 "
    "vocab_size: 64 "
    "seq_length: 16 num_experts: 8 moe_router_topk: 2 moe_ffn_hidden_size: 16 first_dense_layers: 1 "
    "aux_loss_coeff: 0.02 aux_loss_scope: \"global_batch\" z_loss_coeff: 0.002 init_std: 0.1 "
    "capacity_factor: 1 "
    "routing_groups_per_sequence: 8 shared_expert_ffn_hidden_size: 24 ";
// Odd sizes: 3 layers, hidden 328, 7 experts, vocabulary 1009.
constexpr char kOdd[] =
    "num_layers: 3 hidden_size: 328 num_attention_heads: 6 num_key_value_heads: 2 head_dim: 10 "
    "ffn_hidden_size: 72 "
    "vocab_size: 1009 seq_length: 12 num_experts: 7 moe_router_topk: 2 moe_ffn_hidden_size: 36 "
    "moe_layer_freq: 2 "
    "aux_loss_coeff: 0.02 z_loss_coeff: 0.002 init_std: 0.05 routing_groups_per_sequence: 2 ";

constexpr char kTopOne[] =
    "num_layers: 2 hidden_size: 32 num_attention_heads: 4 num_key_value_heads: 2 ffn_hidden_size: 48 "
    "vocab_size: 64 seq_length: 16 moe_router_topk: 1 moe_ffn_hidden_size: 16 first_dense_layers: 1 "
    "aux_loss_coeff: 0.02 z_loss_coeff: 0.002 init_std: 0.1 ";

std::string Model(const std::string& key) {
  static const std::string& four_layers =
      *new std::string(absl::StrReplaceAll(kBase, {{"num_layers: 2", "num_layers: 4"}}));
  static const auto& models = *new std::map<std::string, std::string>{
      {"cap", absl::StrCat(kBase, kCapacity)},
      {"drop", absl::StrCat(kBase, kDropless)},
      {"cap tied", absl::StrCat(kBase, kCapacity, "tie_embeddings: true")},
      {"drop tied", absl::StrCat(kBase, kDropless, "tie_embeddings: true")},
      {"heads8", kEightHeads},
      {"cap 4", absl::StrCat(four_layers, kCapacity)},
      {"drop 4", absl::StrCat(four_layers, kDropless)},
      {"drop 4 tied", absl::StrCat(four_layers, kDropless, "tie_embeddings: true")},
      {"odd", kOdd},
      {"odd cap", absl::StrCat(kOdd, "capacity_factor: 1.1")},
      {"odd tied", absl::StrCat(kOdd, "tie_embeddings: true")},
      {"top1", absl::StrCat(kTopOne, "num_experts: 8 capacity_factor: 1.5 routing_groups_per_sequence: 2")},
      {"top1 drop", absl::StrCat(kTopOne, "num_experts: 8")},
      {"one expert", absl::StrCat(kTopOne, "num_experts: 1")},
  };
  return models.at(key);
}

struct Line {
  const char* model;
  const char* strategy;
  int64_t global_batch;
  int steps;
};

constexpr Line kLines[] = {
    // One dimension alone.
    {"cap", "dp=1", 8, 20},
    {"cap", "dp=8", 8, 20},
    {"drop", "dp=4 microbatches=2", 8, 20},
    {"cap", "tp=2 etp=2", 8, 20},
    {"cap", "tp=4 etp=4", 8, 20},
    {"heads8", "tp=8 etp=8", 8, 20},
    {"cap", "tp=2 etp=2 sp", 8, 20},
    {"drop", "tp=2 etp=2 sp vp", 8, 20},
    {"cap", "dp=4 ep=4", 8, 20},
    {"drop", "dp=8 ep=8", 8, 20},
    {"cap", "dp=2 etp=2", 8, 20},
    {"cap", "pp=2 microbatches=4", 8, 20},
    {"drop", "pp=2 microbatches=4 schedule=gpipe", 8, 20},
    // Pairs, and all together.
    {"cap", "dp=8 ep=4", 8, 20},
    {"drop", "dp=8 ep=4", 8, 20},
    {"cap", "tp=2 dp=4 ep=8", 8, 20},
    {"cap", "tp=2 dp=4 ep=8 sp", 8, 20},
    {"drop", "tp=2 dp=4 ep=4 sp", 8, 20},
    {"drop", "tp=2 dp=4 ep=8", 8, 20},
    {"cap", "tp=2 dp=4 etp=2 ep=2", 8, 20},
    {"drop", "tp=2 dp=4 etp=2 ep=2 sp vp", 8, 20},
    {"heads8", "tp=4 dp=2 etp=4 sp vp", 8, 20},
    {"heads8", "tp=8 dp=2 ep=8 sp vp", 8, 20},
    {"cap", "pp=2 dp=2 tp=2 etp=2 ep=2 microbatches=4", 8, 20},
    {"drop", "pp=2 dp=2 tp=2 ep=4 sp vp zero=1 microbatches=4", 8, 20},
    {"drop", "pp=2 dp=4 tp=2 ep=8 sp vp zero=3 microbatches=2 checkpoint=selective", 8, 20},
    // ZeRO.
    {"cap", "dp=8 ep=4 zero=1", 8, 20},
    {"cap", "dp=4 ep=4 zero=2 microbatches=2", 8, 20},
    {"drop", "dp=8 ep=4 zero=3", 8, 20},
    {"drop", "dp=4 ep=2 zero=3 expert_zero=1 microbatches=2", 8, 20},
    {"drop", "tp=2 dp=4 ep=4 sp vp zero=3", 8, 20},
    // Context parallel.
    {"cap", "cp=2 dp=4", 8, 20},
    {"cap", "cp=2 tp=2 dp=2 sp vp ep=8", 8, 20},
    // Checkpointing.
    {"cap", "tp=2 dp=2 ep=2 etp=2 sp checkpoint=selective", 8, 20},
    {"cap", "tp=2 dp=2 ep=2 etp=2 sp checkpoint=full", 8, 20},
    {"drop", "pp=2 dp=2 ep=2 checkpoint=full microbatches=4", 8, 20},
    // A tied head over two stages.
    {"cap tied", "pp=2 dp=2 ep=2 microbatches=4", 8, 20},
    {"drop tied", "pp=2 tp=2 dp=2 etp=2 ep=2 vp sp zero=1 microbatches=2", 8, 20},
    // Pairs that the lines above leave out.
    {"cap", "pp=2 dp=2 tp=2 ep=4 sp schedule=gpipe checkpoint=full zero=1 microbatches=2", 8, 5},
    {"drop", "pp=2 cp=2 dp=2 ep=4 zero=3 checkpoint=full microbatches=2", 8, 5},
    {"cap", "cp=2 tp=2 dp=2 etp=2 ep=2 zero=1 checkpoint=selective", 8, 5},
    {"drop", "tp=2 dp=4 etp=2 ep=2 sp vp zero=3 microbatches=2 checkpoint=selective", 8, 5},
    {"drop", "pp=2 dp=4 tp=2 etp=2 ep=4 vp zero=2 microbatches=2 schedule=gpipe", 8, 5},
    {"cap tied", "pp=2 cp=2 tp=2 ep=4 vp zero=1 microbatches=4 checkpoint=selective schedule=gpipe", 8, 5},
    // Schedules: several chunks per stage, backwards in halves, a table from a file.
    {"cap 4", "pp=2 virtual_chunks=2 schedule=interleaved microbatches=4", 8, 5},
    {"drop 4", "pp=2 dp=2 ep=2 virtual_chunks=2 schedule=interleaved zero=2 microbatches=2 checkpoint=full",
     8, 5},
    {"cap", "pp=2 schedule=zb-h1 microbatches=4", 8, 20},
    {"drop 4", "pp=4 schedule=zb-h1 microbatches=8", 8, 5},
    {"drop", "pp=2 dp=2 tp=2 ep=4 sp vp zero=3 schedule=zb-h1 microbatches=4 checkpoint=full", 8, 5},
    {"cap 4", "pp=2 virtual_chunks=2 schedule=zb-v microbatches=4", 8, 5},
    {"drop 4",
     "pp=2 dp=2 ep=2 virtual_chunks=2 schedule=zb-v microbatches=4 checkpoint=selective overload=0.6", 8, 5},
    {"drop 4 tied", "pp=2 tp=2 etp=2 vp virtual_chunks=2 schedule=zb-v zero=1 microbatches=8", 8, 5},
    {"drop", "pp=2 schedule=file:moe/testing/testdata/two_stages.csv microbatches=2", 8, 5},
    {"cap", "pp=2 virtual_chunks=2 schedule=dualpipe microbatches=4", 8, 20},
    {"drop 4 tied", "pp=4 dp=2 ep=2 virtual_chunks=2 schedule=dualpipe zero=1 microbatches=8", 16, 5},
    {"drop tied",
     "pp=2 tp=2 dp=2 etp=2 ep=2 sp vp virtual_chunks=2 schedule=dualpipe zero=3 microbatches=4 "
     "checkpoint=selective",
     8, 5},
    {"odd cap", "pp=2 virtual_chunks=2 schedule=dualpipe microbatches=6 checkpoint=full", 6, 5},
    // A ragged bound below what routing reaches: the rows that do not fit are spilled.
    {"drop", "dp=4 ep=4 overload=0.6 microbatches=2", 8, 20},
    {"drop", "pp=2 dp=2 tp=2 etp=2 ep=2 overload=0.8 microbatches=2 checkpoint=selective", 8, 20},
    // Odd sizes.
    {"odd", "dp=2", 6, 5},
    {"odd", "tp=2 etp=2", 6, 5},
    {"odd cap", "tp=2 etp=2 sp dp=3", 6, 5},
    {"odd", "dp=7 ep=7", 7, 5},
    {"odd cap", "dp=7 ep=7 zero=1", 7, 5},
    {"odd", "pp=2 microbatches=3", 6, 5},
    {"odd", "pp=2 tp=2 etp=2 sp microbatches=3 checkpoint=selective", 6, 5},
    {"odd tied", "pp=2 dp=3 zero=3 microbatches=2", 6, 5},
    {"odd tied", "pp=3 tp=2 etp=2 microbatches=6 checkpoint=full", 6, 5},
    {"odd cap", "tp=6 etp=6", 6, 5},
    {"odd", "cp=2 dp=3 microbatches=2", 6, 5},
    {"odd", "pp=2 dp=7 ep=7 microbatches=2", 14, 5},
};

// Batches in which somebody has nothing to do.
struct StarvedLine {
  const char* model;
  const char* strategy;
  bool empty_sample, one_expert;
};
constexpr StarvedLine kStarved[] = {
    // A sample of padding alone: a rank without a token, a microbatch with less.
    {"cap", "dp=8 ep=8", true, false},
    {"drop", "dp=8 ep=4 zero=1", true, false},
    {"drop", "pp=2 dp=2 ep=2 microbatches=4", true, false},
    {"heads8", "tp=2 dp=4 ep=8 sp vp zero=3", true, false},
    // All tokens to the same experts: ranks whose experts get nothing, and one that gets all.
    {"cap", "dp=4 ep=4", false, true},
    {"drop", "dp=8 ep=8", false, true},
    {"drop", "tp=2 dp=4 etp=2 ep=4 sp", false, true},
    {"drop", "dp=4 ep=4 overload=0.6 microbatches=2", false, true},
    {"top1 drop", "pp=2 dp=2 tp=2 ep=4 microbatches=2 checkpoint=full", true, true},
    // One choice, one expert.
    {"top1", "tp=2 dp=4 ep=8", false, false},
    {"top1 drop", "dp=8 ep=8 zero=3", false, false},
    {"one expert", "dp=4", false, false},
    {"one expert", "tp=2 dp=2 etp=2 sp", true, false},
};

class StarvedTest : public ::testing::TestWithParam<StarvedLine> {};

TEST_P(StarvedTest, MatchesTheReference) {
  const StarvedLine& line = GetParam();
  EquivalenceCase c;
  c.name = line.strategy;
  c.model = Model(line.model);
  c.strategy = line.strategy;
  c.steps = 5;
  c.empty_sample = line.empty_sample;
  c.one_expert = line.one_expert;
  ASSERT_OK_AND_ASSIGN(EquivalenceResult r, CheckEquivalence(c));
  SCOPED_TRACE(r.ToString());
  EXPECT_LT(r.worst_gradient, 1e-9);
  EXPECT_LT(r.worst_loss, 1e-9);
  EXPECT_EQ(r.planned_peak, r.measured_peak);
}

INSTANTIATE_TEST_SUITE_P(Workloads, StarvedTest, ::testing::ValuesIn(kStarved));

class EquivalenceTest : public ::testing::TestWithParam<Line> {};

TEST_P(EquivalenceTest, MatchesTheReferenceInF64) {
  const Line& line = GetParam();
  EquivalenceCase c;
  c.name = line.strategy;
  c.model = Model(line.model);
  c.strategy = line.strategy;
  c.global_batch = line.global_batch;
  c.steps = line.steps;
  c.twice = true;
  ASSERT_OK_AND_ASSIGN(EquivalenceResult r, CheckEquivalence(c));
  SCOPED_TRACE(r.ToString());
  EXPECT_LT(r.worst_gradient, 1e-9);
  EXPECT_LT(r.worst_loss, 1e-9);
  EXPECT_LT(r.worst_parameter, 1e-7);  // AdamW's first steps amplify gradient error
  EXPECT_TRUE(r.repeated_bitwise);
  EXPECT_EQ(r.planned_peak, r.measured_peak);
  RecordProperty("result", r.ToString());
}

TEST_P(EquivalenceTest, MatchesTheReferenceInF32WithItsDecisions) {
  const Line& line = GetParam();
  EquivalenceCase c;
  c.name = line.strategy;
  c.model = Model(line.model);
  c.strategy = line.strategy;
  c.global_batch = line.global_batch;
  c.steps = line.steps;
  c.f32 = true;
  ASSERT_OK_AND_ASSIGN(EquivalenceResult r, CheckEquivalence(c));
  SCOPED_TRACE(r.ToString());
  EXPECT_LT(r.worst_gradient, 1e-5);
  EXPECT_LT(r.worst_loss, 1e-4);
}

std::string NameOf(const ::testing::TestParamInfo<Line>& info) {
  std::string name = absl::StrCat(info.index, "_", info.param.model, "_", info.param.strategy);
  for (char& ch : name) {
    if (!std::isalnum(static_cast<unsigned char>(ch))) ch = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Strategies, EquivalenceTest, ::testing::ValuesIn(kLines), NameOf);

}  // namespace
}  // namespace moe
