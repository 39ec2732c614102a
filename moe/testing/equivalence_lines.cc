// Columns: model, strategy words, batch, steps. To add a strategy, add a line.
#include "moe/testing/equivalence_lines.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace moe::testing {
namespace {

// Two layers (dense, MoE), hidden 32, 4 heads over 2 kv heads, vocabulary 64, 16 tokens.
constexpr char kBase[] =
    "num_layers: 2 hidden_size: 32 num_attention_heads: 4 num_key_value_heads: 2 ffn_hidden_size: 48 "
    "vocab_size: 64 seq_length: 16 num_experts: 8 moe_router_topk: 2 moe_ffn_hidden_size: 16 "
    "first_dense_layers: 1 norm_topk_prob: true aux_loss_coeff: 0.02 z_loss_coeff: 0.002 init_std: 0.1 ";
constexpr char kCapacity[] = "capacity_factor: 1.25 routing_groups_per_sequence: 4 ";
constexpr char kDropless[] = "aux_loss_scope: \"sequence\" ";
constexpr char kEightHeads[] =
    "num_layers: 2 hidden_size: 32 num_attention_heads: 8 num_key_value_heads: 2 ffn_hidden_size: 48 "
    "vocab_size: 64 seq_length: 16 num_experts: 8 moe_router_topk: 2 moe_ffn_hidden_size: 16 "
    "first_dense_layers: 1 aux_loss_coeff: 0.02 aux_loss_scope: \"global_batch\" z_loss_coeff: 0.002 "
    "init_std: 0.1 capacity_factor: 1 routing_groups_per_sequence: 8 shared_expert_ffn_hidden_size: 24 ";
// Odd sizes: 3 layers, hidden 328, 7 experts, vocabulary 1009.
constexpr char kOdd[] =
    "num_layers: 3 hidden_size: 328 num_attention_heads: 6 num_key_value_heads: 2 head_dim: 10 "
    "ffn_hidden_size: 72 vocab_size: 1009 seq_length: 12 num_experts: 7 moe_router_topk: 2 "
    "moe_ffn_hidden_size: 36 moe_layer_freq: 2 aux_loss_coeff: 0.02 z_loss_coeff: 0.002 init_std: 0.05 "
    "routing_groups_per_sequence: 2 ";

constexpr char kTopOne[] =
    "num_layers: 2 hidden_size: 32 num_attention_heads: 4 num_key_value_heads: 2 ffn_hidden_size: 48 "
    "vocab_size: 64 seq_length: 16 moe_router_topk: 1 moe_ffn_hidden_size: 16 first_dense_layers: 1 "
    "aux_loss_coeff: 0.02 z_loss_coeff: 0.002 init_std: 0.1 ";

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
    {"cap", "pp=2 microbatches=4", 8, 20},
    {"drop", "pp=2 microbatches=4 schedule=gpipe", 8, 20},
    // Pairs, and all together.
    {"cap", "dp=8 ep=4", 8, 20},
    {"drop", "dp=8 ep=4", 8, 20},
    {"cap", "tp=2 dp=4 ep=8", 8, 20},
    {"drop", "tp=2 dp=4 ep=8", 8, 20},
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
    {"drop", "tp=2 dp=4 ep=4 sp vp zero=3", 8, 20},
    // Context parallel.
    {"cap", "cp=2 tp=2 dp=2 sp vp ep=8", 8, 20},
    // Checkpointing.
    {"cap", "tp=2 dp=2 ep=2 etp=2 sp checkpoint=selective", 8, 20},
    {"cap", "tp=2 dp=2 ep=2 etp=2 sp checkpoint=full", 8, 20},
    {"drop", "pp=2 dp=2 ep=2 checkpoint=full microbatches=4", 8, 20},
    // A tied head over two stages.
    {"cap tied", "pp=2 dp=2 ep=2 microbatches=4", 8, 20},
    {"drop tied", "pp=2 tp=2 dp=2 etp=2 ep=2 vp sp zero=1 microbatches=2", 8, 20},
    // Schedules: backwards in halves, a table from a file.
    {"cap", "pp=2 schedule=zb-h1 microbatches=4", 8, 20},
    {"drop 4", "pp=4 schedule=zb-h1 microbatches=8", 8, 5},
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
    {"odd", "tp=2 etp=2", 6, 5},
    {"odd cap", "tp=2 etp=2 sp dp=3", 6, 5},
    {"odd", "dp=7 ep=7", 7, 5},
    {"odd cap", "dp=7 ep=7 zero=1", 7, 5},
    {"odd", "pp=2 tp=2 etp=2 sp microbatches=3 checkpoint=selective", 6, 5},
    {"odd tied", "pp=2 dp=3 zero=3 microbatches=2", 6, 5},
    {"odd tied", "pp=3 tp=2 etp=2 microbatches=6 checkpoint=full", 6, 5},
    {"odd cap", "tp=6 etp=6", 6, 5},
    {"odd", "cp=2 dp=3 microbatches=2", 6, 5},
    {"odd", "pp=2 dp=7 ep=7 microbatches=2", 14, 5},
    // Nodes of two, four and three ranks: collectives across them in two levels.
    {"cap", "dp=8 ep=8 devices_per_node=4 hierarchical=on", 8, 20},
    {"drop", "dp=8 ep=8 devices_per_node=2 hierarchical=on zero=1", 8, 20},
    {"drop", "tp=2 dp=4 ep=8 sp vp devices_per_node=4 hierarchical=on zero=3", 8, 5},
    {"cap", "tp=4 dp=2 etp=2 ep=4 vp devices_per_node=2 hierarchical=on zero=2 microbatches=2", 8, 5},
    {"drop", "pp=2 dp=4 tp=2 etp=2 ep=4 sp devices_per_node=4 hierarchical=auto zero=1 microbatches=2", 8, 5},
    {"cap", "cp=4 dp=2 ep=8 devices_per_node=2 hierarchical=on cp_attention=gather", 8, 5},
    {"cap", "dp=8 ep=4 zero=3 zero_dp=4 expert_zero_dp=1 devices_per_node=4 hierarchical=on", 8, 5},
    {"odd", "dp=6 devices_per_node=3 hierarchical=on", 6, 5},
    {"odd cap", "dp=14 ep=7 devices_per_node=7 hierarchical=on", 14, 5},
    // Hybrid sharding: state over an inner part of the data ranks.
    {"cap", "dp=4 ep=2 zero=1 zero_dp=2", 8, 20},
    {"cap", "dp=8 ep=2 zero=2 zero_dp=4 expert_zero_dp=2 microbatches=1", 8, 5},
    {"drop", "dp=4 ep=2 zero=3 zero_dp=2 expert_zero_dp=1 microbatches=2", 8, 20},
    {"drop", "pp=2 dp=4 tp=2 etp=2 ep=2 sp vp zero=2 zero_dp=2 expert_zero=3 microbatches=2", 8, 5},
    {"cap", "cp=2 dp=4 ep=2 zero=3 zero_dp=4 expert_zero_dp=2 checkpoint=full", 8, 5},
    {"odd tied", "pp=2 dp=6 zero=3 zero_dp=3 microbatches=1", 6, 5},
    // The ring, in zig-zag and contiguous; keys gathered in zig-zag.
    {"cap", "cp=2 cp_attention=ring cp_order=zigzag", 8, 20},
    {"drop", "cp=4 cp_attention=ring cp_order=zigzag", 8, 20},
    {"cap", "cp=4 dp=2 ep=4 cp_attention=ring cp_order=contiguous zero=1", 8, 5},
    {"cap", "cp=2 dp=2 cp_attention=gather cp_order=zigzag ep=2", 8, 5},
    {"cap", "cp=8 cp_attention=gather cp_order=zigzag microbatches=2", 8, 5},
    {"cap", "cp=2 tp=2 dp=2 sp vp ep=8 cp_attention=ring zero=3", 8, 5},
    {"heads8", "cp=4 tp=4 sp vp ep=4 etp=2 cp_attention=ring zero=2 zero_dp=2", 8, 5},
    {"drop", "cp=4 tp=2 ep=4 cp_attention=ring cp_order=zigzag checkpoint=full microbatches=2", 8, 5},
    {"drop", "pp=2 cp=2 dp=2 ep=2 cp_attention=ring zero=3 checkpoint=selective microbatches=4", 8, 5},
    {"cap tied", "pp=2 cp=2 tp=2 etp=2 vp cp_attention=ring schedule=zb-h1 microbatches=4", 8, 5},
    {"odd", "cp=3 dp=2 cp_attention=ring cp_order=zigzag", 6, 5},
    {"odd cap", "cp=6 cp_attention=ring cp_order=zigzag", 6, 5},
    {"odd cap", "cp=4 cp_attention=ring cp_order=auto microbatches=2", 6, 5},
    {"odd tied", "pp=2 cp=2 tp=2 etp=2 cp_attention=ring zero=1 microbatches=3", 6, 5},
    // Communication beside compute, and in buckets.
    {"cap", "dp=8 ep=4 overlap=on", 8, 5},
    {"drop", "dp=4 ep=4 zero=2 microbatches=2 overlap=on bucket=4096", 8, 5},
    {"drop", "tp=2 dp=4 ep=4 sp vp zero=3 overlap=on", 8, 5},
    {"drop", "pp=2 dp=2 tp=2 ep=4 sp vp zero=1 microbatches=4 overlap=on bucket=65536 checkpoint=selective",
     8, 5},
    {"cap tied", "pp=2 dp=2 ep=2 microbatches=4 overlap=on bucket=65536", 8, 5},
    {"odd", "dp=7 ep=7 overlap=on", 7, 5},
    {"cap", "tp=2 dp=2 ep=4 sp zero=3 overlap=on moe_chunks=2", 8, 5},
    {"drop", "pp=2 dp=2 ep=2 microbatches=2 overlap=on moe_chunks=4 checkpoint=full", 8, 5},
    {"odd tied", "pp=2 dp=3 zero=3 microbatches=2 overlap=on bucket=65536", 6, 5},
    // How tokens reach experts elsewhere.
    {"cap", "dp=8 ep=8 dispatcher=allgather", 8, 5},
    {"drop", "tp=2 dp=4 ep=8 sp dispatcher=allgather", 8, 5},
    {"drop", "pp=2 dp=2 tp=2 etp=2 ep=2 microbatches=2 dispatcher=alltoall", 8, 5},
    // The least recomputation that fits, and lists of ops.
    {"cap", "tp=2 dp=2 ep=2 etp=2 sp checkpoint=auto checkpoint_budget=50KiB", 8, 5},
    {"drop", "pp=2 dp=2 ep=2 microbatches=4 checkpoint=auto checkpoint_budget=60KiB", 8, 5},
    {"drop 4", "pp=2 schedule=zb-h1 microbatches=4 checkpoint=nn.rms_norm+nn.swiglu+nn.attention", 8, 5},
    {"odd", "dp=7 ep=7 dispatcher=allgather", 7, 5},
    {"odd cap", "pp=2 dp=7 ep=7 microbatches=2 dispatcher=alltoall", 14, 5},
    {"odd", "pp=2 tp=2 etp=2 microbatches=3 checkpoint=auto checkpoint_budget=500KiB", 6, 5},
    {"odd cap", "dp=3 zero=3 microbatches=2 checkpoint=selective+nn.attention", 6, 5},
    // Experts by slots: an empty one where ep does not divide them, a map of one's own, replicas.
    {"odd", "dp=2 ep=2 expert_slots=8", 6, 5},
    {"odd cap", "tp=2 dp=2 ep=4 sp zero=1 expert_map=6:-1:2:3:4:5:1:0", 6, 5},
    {"odd", "pp=2 dp=2 ep=2 expert_map=0:1:2:3:4:5:6:0 microbatches=3", 6, 5},
    {"cap", "dp=4 ep=4 expert_map=0:1:2:3:4:5:6:7:7:0:0:-1 zero=1", 8, 20},
    {"drop", "pp=2 dp=2 tp=2 etp=2 ep=2 expert_map=3:0:1:2:4:5:6:7:3:3 microbatches=2 checkpoint=full", 8,
     20},
    {"drop", "dp=8 ep=4 expert_map=0:1:2:3:4:5:6:7:0:1:2:3:4:5:6:7 zero=3", 8, 20},
    {"drop", "dp=4 ep=2 expert_map=7:6:5:4:3:2:1:0 zero=2 microbatches=2 checkpoint=selective", 8, 20},
    {"drop", "tp=2 dp=4 ep=8 sp vp expert_slots=16 overload=0.6", 8, 20},
    // A vocabulary of 1009 words over tp.
    {"odd", "tp=2 etp=2 vp", 6, 5},
    {"odd tied", "pp=2 tp=2 dp=2 ep=4 expert_slots=8 vp sp zero=1 microbatches=3", 6, 5},
    {"odd cap", "tp=6 etp=6 vp zero=1", 6, 5},
};

// Computed in bf16 or f16 with f32 masters, or exchanged in bf16 or block-scaled e4m3; decisions replayed:
// losses within 2e-2 of the f64 reference.
constexpr Line kNarrow[] = {
    {"cap", "dp=1 bf16", 8, 20},
    {"drop", "dp=4 ep=4 microbatches=2 bf16", 8, 20},
    {"cap", "tp=2 dp=2 etp=2 ep=2 sp vp bf16", 8, 20},
    {"drop", "pp=2 dp=2 tp=2 ep=4 sp vp zero=1 microbatches=4 bf16 checkpoint=selective", 8, 20},
    {"drop", "dp=8 ep=4 zero=3 bf16", 8, 20},
    {"drop", "dp=4 ep=4 overload=0.6 microbatches=2 bf16", 8, 5},
    {"drop 4 tied", "pp=2 tp=2 etp=2 vp virtual_chunks=2 schedule=zb-v zero=1 microbatches=8 bf16", 8, 5},
    {"odd cap", "cp=2 dp=3 microbatches=2 checkpoint=full bf16", 6, 5},
    {"odd", "dp=7 ep=7 zero=2 bf16", 7, 5},
    {"drop", "pp=2 dp=4 ep=4 zero=1 microbatches=2 bf16 grads=bf16", 8, 5},
    {"odd cap", "dp=6 zero=2 zero_dp=3 microbatches=2 bf16 grads=bf16 compress_gather=f8", 12, 5},
    {"drop 4 tied", "pp=2 dp=2 zero=1 schedule=dualpipe virtual_chunks=2 microbatches=4 f16 grads=f16", 8, 5},
    {"cap", "cp=2 dp=2 cp_attention=ring bf16", 8, 5},
    {"cap", "dp=2 ep=2 f16", 8, 20},
    {"drop", "pp=2 tp=2 etp=2 sp vp microbatches=4 f16", 8, 20},
    {"odd tied", "pp=2 dp=3 zero=3 microbatches=2 f16", 6, 5},
    // Products of experts in e4m3.
    {"cap", "dp=1 bf16 fp8_experts", 8, 20},
    {"drop", "dp=4 ep=4 microbatches=2 bf16 fp8_experts", 8, 20},
    {"drop", "tp=2 dp=2 etp=2 ep=2 sp vp overload=0.6 bf16 fp8_experts", 8, 20},
    {"cap", "pp=2 dp=2 ep=2 zero=3 microbatches=4 schedule=zb-h1 checkpoint=full bf16 fp8_experts", 8, 5},
    {"odd", "dp=7 ep=7 zero=2 bf16 grads=bf16 fp8_experts compress_dispatch=f8", 7, 5},
    // Exchanges narrower than what is computed.
    {"cap", "dp=4 ep=4 compress_dispatch=bf16 compress_combine=bf16", 8, 20},
    {"drop", "dp=4 ep=4 compress_dispatch=f8", 8, 20},
    {"drop", "tp=2 dp=2 etp=2 ep=2 sp compress_combine=f8 checkpoint=full", 8, 20},
    {"drop", "dp=8 ep=4 zero=3 compress_gather=bf16 compress_grad=f8", 8, 20},
    {"cap", "dp=4 zero=3 compress_gather=f8", 8, 20},
    {"cap", "dp=4 tp=2 ep=4 compress_grad=bf16", 8, 20},
    {"drop", "pp=2 dp=2 zero=2 microbatches=4 compress_grad=f8 schedule=zb-h1", 8, 5},
    {"drop", "dp=4 ep=4 overload=0.6 microbatches=2 compress_dispatch=f8 compress_combine=bf16", 8, 5},
    {"drop", "dp=4 ep=4 overlap=on moe_chunks=2 bf16 compress_dispatch=f8 compress_combine=f8", 8, 5},
    {"drop", "tp=2 dp=2 ep=4 dispatcher=allgather compress_dispatch=f8 compress_combine=f8", 8, 20},
    {"odd", "dp=7 ep=7 zero=1 compress_dispatch=f8 compress_combine=f8 compress_grad=f8", 7, 5},
    {"odd cap", "tp=2 etp=2 sp dp=3 zero=3 bf16 compress_dispatch=f8 compress_gather=f8 compress_grad=bf16",
     6, 5},
};

constexpr StarvedLine kStarved[] = {
    // A sample of padding alone: a rank without a token, a microbatch with less.
    {"cap", "dp=8 ep=8", true, false},
    {"drop", "pp=2 dp=2 ep=2 microbatches=4", true, false},
    {"heads8", "tp=2 dp=4 ep=8 sp vp zero=3", true, false},
    // All tokens to the same experts: ranks whose experts get nothing, and one that gets all.
    {"cap", "dp=4 ep=4", false, true},
    {"drop", "dp=4 ep=4 overload=0.6 microbatches=2", false, true},
    {"top1 drop", "pp=2 dp=2 tp=2 ep=4 microbatches=2 checkpoint=full", true, true},
    // One choice, one expert.
    {"top1", "tp=2 dp=4 ep=8", false, false},
    {"top1 drop", "dp=8 ep=8 zero=3", false, false},
    {"one expert", "dp=4", false, false},
    {"one expert", "tp=2 dp=2 etp=2 sp", true, false},
};

}  // namespace

absl::Span<const Line> Lines() { return kLines; }
absl::Span<const Line> NarrowLines() { return kNarrow; }
absl::Span<const StarvedLine> StarvedLines() { return kStarved; }

std::string LineModel(const std::string& key) {
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

EquivalenceCase CaseOf(const Line& line) {
  EquivalenceCase c;
  c.name = line.strategy;
  c.model = LineModel(line.model);
  c.strategy = line.strategy;
  c.global_batch = line.global_batch;
  c.steps = line.steps;
  return c;
}

EquivalenceCase CaseOf(const StarvedLine& line) {
  EquivalenceCase c;
  c.name = line.strategy;
  c.model = LineModel(line.model);
  c.strategy = line.strategy;
  c.empty_sample = line.empty_sample;
  c.one_expert = line.one_expert;
  return c;
}

std::vector<EquivalenceCase> WrittenCases() {
  std::vector<EquivalenceCase> cases;
  for (const absl::Span<const Line> lines : {Lines(), NarrowLines()}) {
    for (const Line& line : lines) cases.push_back(CaseOf(line));
  }
  for (const StarvedLine& line : kStarved) cases.push_back(CaseOf(line));
  return cases;
}

}  // namespace moe::testing
