#include "moe/train/config/validate.h"

#include <cmath>
#include <limits>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "moe/base/status_matchers.h"
#include "moe/base/textproto.h"

namespace moe::train {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// The default model and training with a textproto laid over it, resolved. The words of its strategy stand behind
// those of a strategy that has every degree but cp.
RunConfig With(absl::string_view text) {
  RunConfig config = DefaultRunConfig();
  config.clear_strategy();
  EXPECT_OK(MergeTextproto(text, "test", config));
  config.set_strategy(absl::StrCat("pp=2 dp=2 tp=2 ep=2 etp=0 checkpoint=selective ", config.strategy()));
  return ResolveRunConfig(config);
}

// All parts must be in the error; there must be exactly `count` problems.
template <typename... Parts>
void ExpectProblems(absl::string_view text, int count, Parts... parts) {
  SCOPED_TRACE(text);
  ExpectError(ValidateRunConfig(With(text)), absl::StatusCode::kInvalidArgument,
              absl::StrCat("cannot be built; ", count, count == 1 ? " problem\n" : " problems\n"), parts...);
}

std::string NearestFlags(absl::string_view text) {
  const std::string message(ValidateRunConfig(With(text)).message());
  const size_t at = message.find("\n  --");
  return at == std::string::npos ? message : message.substr(at + 3);
}

TEST(ValidateTest, TheDefaultIsLegal) { EXPECT_OK(ValidateRunConfig(ResolveRunConfig(DefaultRunConfig()))); }

// Every number of a configuration, by itself far beyond anything sensible: refused, and at once.
TEST(ValidateTest, EveryNumberHasBounds) {
  using ::google::protobuf::FieldDescriptor;
  using ::google::protobuf::Message;
  constexpr int64_t kLeast = std::numeric_limits<int64_t>::min(), kMost = std::numeric_limits<int64_t>::max();
  int fields = 0;
  for (const char* part : {"model", "train", "cluster"}) {
    const auto* of_part = RunConfig::descriptor()->FindFieldByName(part);
    const auto* descriptor = of_part->message_type();
    for (int f = 0; f < descriptor->field_count(); ++f) {
      const FieldDescriptor* field = descriptor->field(f);
      const auto refused = [&](auto set, auto value) {
        RunConfig config = With("");
        Message* message = config.GetReflection()->MutableMessage(&config, of_part);
        (message->GetReflection()->*set)(message, field, value);
        const absl::Status status = ValidateRunConfig(ResolveRunConfig(config));
        EXPECT_FALSE(status.ok()) << part << "." << field->name() << " = " << value;
        ++fields;
      };
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_INT64) {
        for (const int64_t value : {kLeast, int64_t{-1}, kMost})
          refused(&google::protobuf::Reflection::SetInt64, value);
      } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
        for (const double value : {-1.0, 1e301, HUGE_VAL, -HUGE_VAL, std::nan("")}) {
          refused(&google::protobuf::Reflection::SetDouble, value);
        }
      }
    }
  }
  EXPECT_GT(fields, 80);
}

TEST(ValidateTest, UnevenStagesAreLegalEmptyOnesNot) {
  EXPECT_OK(ValidateRunConfig(With("model { num_layers: 3 }")));
  EXPECT_OK(ValidateRunConfig(With("model { num_layers: 7 } strategy: 'pp=4'")));
  ExpectProblems("model { num_layers: 3 } strategy: 'pp=4'", 1,
                 "num_layers = 3 on 4 pipeline stages leaves a stage empty",
                 "pipeline_model_parallel_size from 1 to 3", "--pipeline_model_parallel_size=3");
  ExpectProblems("strategy: 'virtual_chunks=3 schedule=gpipe'", 1, "num_layers = 4 on 6 chunks",
                 "pipeline_model_parallel_size from 1 to 1");
}

TEST(ValidateTest, SchedulesHaveTheirChunksAndMicrobatches) {
  EXPECT_OK(ValidateRunConfig(With("strategy: 'schedule=zb-h1'")));
  EXPECT_OK(ValidateRunConfig(With("strategy: 'schedule=zb-v virtual_chunks=2'")));
  ExpectProblems("strategy: 'schedule=zb-v'", 1, "schedule zb-v, which has two chunks per stage",
                 "--virtual_pipeline_model_parallel_size=2");
  ExpectProblems("strategy: 'schedule=zb-h1 virtual_chunks=2'", 1,
                 "schedule zb-h1, which has one chunk per stage", "--virtual_pipeline_model_parallel_size=1");
  ExpectProblems("strategy: 'schedule=interleaved'", 1, "interleaved, which has at least two chunks");
}

TEST(ValidateTest, Tf32IsForGpus) {
  EXPECT_OK(ValidateRunConfig(With("train { tf32: true device: 'cuda' }")));
  ExpectProblems("train { tf32: true }", 1, "tf32", "device = cpu", "--notf32, or --device=cuda");
}

TEST(ValidateTest, CudnnIsForGpus) {
  EXPECT_OK(ValidateRunConfig(With("train { cudnn_attention: true device: 'cuda' }")));
  ExpectProblems("train { cudnn_attention: true }", 1, "cudnn_attention with device = cpu",
                 "--nocudnn_attention, or --device=cuda");
}

TEST(ValidateTest, ExpertsOverRanks) {
  ExpectProblems("strategy: 'ep=3 dp=3' train { global_batch_size: 24 }", 1,
                 "expert_model_parallel_size = 3 does not divide num_experts = 8",
                 "legal here: 1, 2, 4, 8, or --expert_slots=9, of which some stay empty");
  ExpectProblems("strategy: 'ep=8'", 1, "8 x 2 does not divide the 4 ranks of a stage",
                 "expert_model_parallel_size of 1, 2 with this");
  ExpectProblems("strategy: 'etp=5 ep=1'", 2,
                 "expert_tensor_parallel_size = 5 does not divide moe_ffn_hidden_size = 192");
  // Folding of experts over dp x tp is legal.
  EXPECT_OK(ValidateRunConfig(With("strategy: 'ep=4 etp=1'")));
  ExpectProblems("model { num_experts: 0 ffn_hidden_size: 256 } strategy: 'etp=2'", 1,
                 "the model has no experts");
}

TEST(ValidateTest, ExpertSlots) {
  EXPECT_OK(ValidateRunConfig(With("model { num_experts: 7 } strategy: 'expert_slots=8'")));
  EXPECT_OK(ValidateRunConfig(With("model { num_experts: 7 } strategy: 'expert_map=0:1:2:3:4:5:6:0'")));
  ExpectProblems("model { num_experts: 7 } strategy: 'expert_slots=9'", 1,
                 "9 expert slots do not divide over ep = 2; the next that do: 10",
                 "--expert_model_parallel_size=");
  ExpectProblems("strategy: 'expert_slots=6'", 1, "6 expert slots for 8 experts", "--expert_slots=0");
  ExpectProblems("model { num_experts: 0 ffn_hidden_size: 256 } strategy: 'ep=1 etp=1 expert_slots=8'", 1,
                 "the model has no experts", "--expert_slots=0");
  ExpectProblems("strategy: 'expert_slots=-2'", 1, "expert_slots = -2");
  ExpectProblems("model { num_experts: 4 } strategy: 'expert_map=0:1:2:2'", 1, "expert 3 has no slot",
                 "--expert_map=");
  ExpectProblems("model { num_experts: 4 } strategy: 'expert_map=0:1:2:3:4:-1'", 1, "slot 4 holds 4");
  ExpectProblems("model { num_experts: 4 } strategy: 'expert_map=0:1:2:x'", 1, "'x' is not an expert");
  ExpectProblems("model { num_experts: 4 } strategy: 'expert_map=0:1:2:3 expert_slots=6'", 1,
                 "expert_map has 4 entries for 6 expert slots");
}

TEST(ValidateTest, HeadsAndFeaturesOverTensorRanks) {
  ExpectProblems("strategy: 'tp=3 etp=1 ep=1'", 1,
                 "tensor_model_parallel_size = 3 does not divide num_attention_heads = 8",
                 "legal here: 1, 2, 4, 8");
  ExpectProblems(
      "model { num_attention_heads: 12 head_dim: 8 num_key_value_heads: 4 } strategy: 'tp=6 etp=1 ep=1'", 1,
      "tensor_model_parallel_size = 6 and num_key_value_heads = 4: one must divide the other",
      "legal here: 1, 2, 4, 12");
  EXPECT_OK(ValidateRunConfig(With("strategy: 'tp=8'")));  // above the kv heads
  ExpectProblems("strategy: 'tp=8 no_kv_axis'", 1,
                 "without split_tensor_by_kv_heads the first must divide the second", "legal here: 1, 2, 4");
  // A vocabulary, or its blocks, that do not divide are padded.
  EXPECT_OK(ValidateRunConfig(With("model { vocab_blocks: 1 } strategy: 'vp'")));
  EXPECT_OK(ValidateRunConfig(With("model { vocab_size: 1009 } strategy: 'vp'")));
  ExpectProblems("model { first_dense_layers: 1 ffn_hidden_size: 65 shared_expert_ffn_hidden_size: 33 }", 2,
                 "does not divide ffn_hidden_size = 65",
                 "does not divide shared_expert_ffn_hidden_size = 33");
}

TEST(ValidateTest, ExpertsThatNoLayerHas) {
  ExpectProblems(
      "model { num_layers: 2 first_dense_layers: 2 ffn_hidden_size: 64 } strategy: 'expert_slots=16'", 1,
      "the model has no experts", "--expert_slots=0");
}

TEST(ValidateTest, Fp8Experts) {
  EXPECT_OK(ValidateRunConfig(With("strategy: 'bf16 fp8_experts' cluster { target: 'h100' }")));
  ExpectProblems("strategy: 'f16 fp8_experts' cluster { target: 'a100' }", 2, "fp8_experts without bf16",
                 "legal here: bf16 with it, or neither", "target a100, which has no products of e4m3",
                 "legal here: cpu, h100, h200");
  ExpectProblems(
      "model { num_layers: 2 first_dense_layers: 2 ffn_hidden_size: 64 } strategy: 'bf16 fp8_experts'", 1,
      "fp8_experts, but the model has no experts", "--nofp8_experts");
}

TEST(ValidateTest, PartsOfExperts) {
  EXPECT_OK(ValidateRunConfig(With("strategy: 'moe_chunks=2'")));
  ExpectProblems("strategy: 'moe_chunks=3'", 1, "moe_chunks = 3 does not divide the 4 experts of a rank",
                 "legal here: 1, 2, 4");
}

TEST(ValidateTest, Sequence) {
  ExpectProblems("strategy: 'cp=3'", 2, "do not fold",
                 "context_parallel_size = 3 does not divide seq_length = 128");
  ExpectProblems("model { seq_length: 127 } strategy: 'sp'", 1, "does not divide seq_length = 127");
  ExpectProblems("model { routing_groups_per_sequence: 5 }", 1,
                 "routing_groups_per_sequence = 5 does not divide seq_length = 128");
}

TEST(ValidateTest, OrderOfTheSequenceStateAndNodes) {
  ExpectProblems("model { seq_length: 6 routing_groups_per_sequence: 1 } strategy: 'cp=2 cp_order=zigzag'", 1,
                 "2 x context_parallel_size = 4 blocks, which does not divide seq_length = 6",
                 "contiguous or auto");
  ExpectProblems("strategy: 'cp_attention=rings cp_order=zag hierarchical=yes devices_per_node=-1'", 4,
                 "cp_attention = 'rings'", "auto, gather, ring", "cp_order = 'zag'",
                 "hierarchical_collectives = 'yes'", "devices_per_node = -1");
  ExpectProblems("strategy: 'zero=1 zero_dp=3'", 1,
                 "zero_dp_size = 3 does not divide data_parallel_size x context_parallel_size = 2");
  ExpectProblems("strategy: 'zero_dp=2'", 1, "zero_dp_size = 2, but this state is not sharded");
  ExpectProblems("strategy: 'zero=2 expert_zero_dp=2'", 1, "expert_zero_dp_size = 2 does not divide");
}

TEST(ValidateTest, World) {
  EXPECT_OK(ValidateRunConfig(With("strategy: 'world_size=8'")));
  ExpectProblems("strategy: 'world_size=16'", 1, "2 x 2 x 1 x 2 = 8 is not the world size 16",
                 "data_parallel_size = 4", "--data_parallel_size=4");
  ExpectProblems("strategy: 'world_size=12 dp=2'", 1, "= 8 is not the world size 12",
                 "nearest legal strategy");
  // What a user who multiplies ep into the world must be told.
  ExpectProblems("strategy: 'world_size=32'", 1, "experts share the ranks of dp, cp and tp");
  // Without a data parallel size, the world gives it.
  const RunConfig derived = With("strategy: 'world_size=32 dp=0'");
  EXPECT_EQ(StrategyOf(derived).dp, 8);
  EXPECT_OK(ValidateRunConfig(derived));
}

TEST(ValidateTest, Folding) {
  ExpectProblems(
      "model { num_attention_heads: 12 num_key_value_heads: 12 head_dim: 8 num_experts: 4 } "
      "strategy: 'tp=3 dp=4 ep=4 etp=1'",
      1, "do not fold", "nearest legal strategy");
}

TEST(ValidateTest, Batch) {
  ExpectProblems("train { global_batch_size: 30 }", 1,
                 "micro_batch_size x data_parallel_size = 4 x 2 does not divide global_batch_size = 30",
                 "micro_batch_size of 1, 3, 5, 15", "24 or 32");
  ExpectProblems("train { global_batch_size: 5 }", 1, "global_batch_size of 8");
  ExpectProblems("train { global_batch_size: -1 }", 1, "global_batch_size = -1");
}

TEST(ValidateTest, ModelAndTraining) {
  ExpectProblems("model { moe_router_topk: 9 }", 1, "moe_router_topk = 9 exceeds num_experts = 8");
  ExpectProblems("model { vocab_size: 100 }", 1, "vocab_size = 100", "256");
  ExpectProblems("train { train_iters: 0 lr: -1 min_lr: 0 adam_beta1: 1 held_out_fraction: 1 adam_eps: 0 }",
                 6, "train_iters = 0", "lr = -1", "adam_beta1 = 1", "held_out_fraction = 1", "adam_eps = 0");
  ExpectProblems("train { clip_grad: nan }", 1, "clip_grad = nan");
  ExpectProblems("strategy: 'schedule=zigzag checkpoint=some zero=4 ep_order=x'", 4, "schedule = 'zigzag'",
                 "1f1b, gpipe, interleaved, zb-h1, zb-v, dualpipe, file:PATH",
                 "recompute_granularity = 'some'", "zero_stage = 4", "--schedule=1f1b");
  ExpectProblems(
      "model { aux_loss_scope: 'global_batch' } strategy: 'schedule=dualpipe pp=2 virtual_chunks=2'", 1,
      "moe_aux_loss_scope = global_batch", "with schedule dualpipe", "--schedule=1f1b");
  ExpectProblems("strategy: 'checkpoint=auto'", 1, "auto without a budget", "memory_limit");
  ExpectProblems("strategy: 'checkpoint=full+moe.top_k'", 1, "moe.top_k is never recomputed");
  ExpectProblems("strategy: 'memory_limit=4GB dispatcher=flex'", 2, "memory_limit = '4GB'", "38.5MiB",
                 "moe_token_dispatcher_type = 'flex'", "auto, alltoall, allgather");
  ExpectProblems("strategy: 'tp=-2'", 1, "tensor_model_parallel_size = -2", "1 to");
}

TEST(ValidateTest, AllAtOnceAndTheNearestOfAll) {
  const std::string text =
      "model { num_layers: 3 moe_router_topk: 9 } "
      "strategy: 'pp=4 tp=3 ep=3 etp=1 dp=1' train { global_batch_size: 6 micro_batch_size: 4 min_lr: 1 }";
  ExpectProblems(text, 6, "this configuration cannot be built", "  1  moe_router_topk = 9",
                 "num_layers = 3 on 4", "tensor_model_parallel_size = 3", "expert_model_parallel_size = 3",
                 "4 x 1 does not divide global_batch_size = 6", "min_lr = 1",
                 "nearest legal strategy:  pp 3 x tp 4, ep 4");
  EXPECT_EQ(NearestFlags(text),
            "--pipeline_model_parallel_size=3 --tensor_model_parallel_size=4 --expert_model_parallel_size=4 "
            "--micro_batch_size=3");
}

TEST(ValidateTest, AtScale) {
  const std::string mixtral =
      "model { num_layers: 56 hidden_size: 6144 num_attention_heads: 48 num_key_value_heads: 8 "
      "moe_ffn_hidden_size: 16384 vocab_size: 32768 seq_length: 4096 num_experts: 64 } "
      "train { global_batch_size: 1024 micro_batch_size: 1 }";
  EXPECT_OK(ValidateRunConfig(With(mixtral + "strategy: 'world_size=128 pp=4 tp=8 dp=4 ep=32 etp=1'")));
  const std::string wrong = mixtral + "strategy: 'world_size=128 pp=4 tp=8 dp=4 ep=64 etp=1'";
  ExpectProblems(wrong, 1, "64 x 1 does not divide the 32 ranks of a stage",
                 "ep x tp x pp x dp = 64 x 8 x 4 x 4 = 8192 is not the world size 128",
                 "expert_model_parallel_size of 1, 2, 4, 8, 16, 32",
                 "nearest legal strategy:  pp 4 x dp 4 x tp 8, ep 32, etp 1, 2 experts per rank");
  EXPECT_EQ(NearestFlags(wrong), "--expert_model_parallel_size=32");
}

// Whatever is wrong, and however much of it: each problem says what would be legal in its place.
TEST(ValidateTest, EveryProblemSaysWhatIsLegal) {
  const std::string text =
      "model { num_layers: 3 num_attention_heads: 6 num_key_value_heads: 2 head_dim: 16 num_experts: 6 "
      "moe_ffn_hidden_size: 190 first_dense_layers: 1 ffn_hidden_size: 65 shared_expert_ffn_hidden_size: 33 "
      "seq_length: 127 routing_groups_per_sequence: 1 vocab_size: 1009 } "
      "strategy: 'pp=4 tp=4 cp=2 dp=3 ep=5 etp=4 world_size=100 sp vp zero=9 expert_zero=5 schedule=zigzag "
      "checkpoint=some ep_order=x overload=-1' "
      "train { global_batch_size: 7 micro_batch_size: 2 lr: -1 train_iters: 0 adam_beta2: 2 }";
  const RunConfig config = With(text);
  std::vector<strategy::Problem> problems = StrategyProblems(config);
  EXPECT_GE(problems.size(), 16);
  for (const strategy::Problem& p : TrainConfigProblems(config)) problems.push_back(p);
  for (const strategy::Problem& p : problems) EXPECT_NE(p.legal, "") << p.what;
  const std::string message(ValidateRunConfig(config).message());
  for (const char* part :
       {"num_layers = 3 on 4 pipeline stages", "4 does not divide num_attention_heads = 6",
        "4 does not divide ffn_hidden_size = 65", "4 does not divide shared_expert_ffn_hidden_size = 33",
        "context_parallel_size = 2 does not divide seq_length = 127",
        "expert_model_parallel_size = 5 does not divide num_experts = 6",
        "expert_tensor_parallel_size = 4 does not divide moe_ffn_hidden_size = 190",
        "pp x dp x cp x tp = 4 x 3 x 2 x 4 = 96 is not the world size 100", "does not divide the 24 ranks",
        "2 x 3 does not divide global_batch_size = 7", "zero_stage = 9", "expert_zero_stage = 5", "zigzag",
        "'some'", "expert_axis_order = 'x'", "moe_overload_factor = -1", "lr = -1", "train_iters = 0",
        "adam_beta2 = 2"}) {
    EXPECT_THAT(message, HasSubstr(part));
  }
  ExpectProblems(
      "model { num_attention_heads: 12 num_key_value_heads: 12 head_dim: 8 num_experts: 4 } "
      "strategy: 'tp=3 dp=4 ep=4 etp=1'",
      1, "do not fold", "expert_model_parallel_size of 1 with these others");
}

TEST(ValidateTest, AbsurdNumbersAreOnlyErrors) {
  const int64_t huge = std::numeric_limits<int64_t>::max();
  for (const char* field :
       {"num_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "seq_length",
        "num_experts", "moe_ffn_hidden_size", "vocab_size", "moe_layer_freq", "head_dim"}) {
    for (int64_t value : {huge, huge - 1, int64_t{-1}, int64_t{-huge}}) {
      EXPECT_FALSE(ValidateRunConfig(With(absl::StrCat("model { ", field, ": ", value, " }"))).ok() &&
                   std::string(field) != "moe_layer_freq")
          << field << " " << value;
    }
  }
  for (const char* word : {"pp", "dp", "cp", "tp", "ep", "etp", "virtual_chunks", "world_size"}) {
    for (int64_t value : {huge, int64_t{1} << 20, int64_t{-1}}) {
      EXPECT_FALSE(ValidateRunConfig(With(absl::StrCat("strategy: '", word, "=", value, "'"))).ok()) << word;
    }
  }
  EXPECT_FALSE(ValidateRunConfig(With(absl::StrCat("train { global_batch_size: ", huge, " }"))).ok());
  EXPECT_FALSE(ValidateRunConfig(With(absl::StrCat("train { micro_batch_size: ", huge, " }"))).ok());
  EXPECT_FALSE(ValidateRunConfig(RunConfig()).ok());
  EXPECT_FALSE(ValidateRunConfig(ResolveRunConfig(RunConfig())).ok());
}

// Whatever is proposed must be legal, and what is legal needs no proposal.
TEST(ValidateTest, RandomStrategies) {
  const unsigned seed = 1117;
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  int legal = 0;
  for (int trial = 0; trial < 300; ++trial) {
    auto pick = [&](std::vector<int64_t> of) { return of[random() % of.size()]; };
    const RunConfig config = With(absl::StrCat(
        "strategy: 'pp=", pick({1, 2, 3, 4, 5}), " dp=", pick({1, 2, 3, 4}), " cp=", pick({1, 1, 2, 3}),
        " tp=", pick({1, 2, 3, 4, 8, 16}), " ep=", pick({1, 2, 3, 4, 8, 16}), " etp=", pick({1, 2, 4, 5}),
        " world_size=", pick({0, 0, 8, 16, 24}), random() % 2 ? " sp" : "", "'"));
    const bool ok = ValidateRunConfig(config).ok();
    const std::optional<RunConfig> nearest = NearestLegalStrategy(config);
    ASSERT_TRUE(nearest.has_value()) << RunConfigToText(config);
    EXPECT_OK(ValidateRunConfig(*nearest));
    EXPECT_EQ(RunConfigToText(*nearest) == RunConfigToText(config), ok);
    legal += ok;
  }
  EXPECT_GT(legal, 5);
}

}  // namespace
}  // namespace moe::train
