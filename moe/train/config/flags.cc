#include "moe/train/config/flags.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/flags/flag.h"
#include "absl/types/optional.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/base/textproto.h"
#include "moe/model/config.h"

ABSL_FLAG(std::string, config, "", "RunConfig as textproto, laid over the defaults.");
ABSL_FLAG(std::string, model, "",
          "ModelConfig as textproto; replaces the model of --config and of the defaults.");
ABSL_FLAG(
    std::string, strategy, "",
    "A strategy in compact words (pp= dp= cp= tp= ep= etp= sp vp zero= expert_zero= microbatches= "
    "virtual_chunks= "
    "moe_chunks= schedule= checkpoint= checkpoint_budget= memory_limit= dispatcher= overload= ep_order= "
    "bucket= overlap= bf16 f16 grads= fp8_experts compress_dispatch= compress_combine= compress_gather= "
    "compress_grad= "
    "no_kv_axis expert_slots= expert_map= zero_dp= expert_zero_dp= cp_attention= cp_order= "
    "devices_per_node= hierarchical=); replaces the strategy of --config and the "
    "defaults.");

// type, flag, part of RunConfig, its field, help. A flag has its field's name, or Megatron's where that is
// another.
#define MOE_VALUE_FLAGS(X)                                                                                   \
  X(int64_t, num_layers, model, num_layers, "Transformer layers.")                                           \
  X(int64_t, hidden_size, model, hidden_size, "Width of the residual stream.")                               \
  X(int64_t, num_attention_heads, model, num_attention_heads, "Query heads.")                                \
  X(int64_t, num_query_groups, model, num_key_value_heads, "Key-value heads; 0: as num_attention_heads.")    \
  X(int64_t, kv_channels, model, head_dim, "Width of a head; 0: hidden_size / num_attention_heads.")         \
  X(int64_t, ffn_hidden_size, model, ffn_hidden_size, "Feature width of dense layers.")                      \
  X(int64_t, vocab_size, model, vocab_size, "Tokens of the vocabulary.")                                     \
  X(int64_t, seq_length, model, seq_length, "Tokens of a sample.")                                           \
  X(int64_t, num_experts, model, num_experts, "Experts of a MoE layer; 0: all layers dense.")                \
  X(int64_t, moe_router_topk, model, moe_router_topk, "Experts that a token visits.")                        \
  X(int64_t, moe_ffn_hidden_size, model, moe_ffn_hidden_size,                                                \
    "Feature width of an expert; 0: as ffn_hidden_size.")                                                    \
  X(int64_t, moe_shared_expert_intermediate_size, model, shared_expert_ffn_hidden_size,                      \
    "Feature width of the shared expert; 0: none.")                                                          \
  X(int64_t, first_dense_layers, model, first_dense_layers, "Dense layers before the first MoE layer.")      \
  X(int64_t, moe_layer_freq, model, moe_layer_freq, "Every how many layers is a MoE layer.")                 \
  X(double, moe_expert_capacity_factor, model, capacity_factor,                                              \
    "Slots per expert and routing group, as a multiple of a balanced share; 0: dropless.")                   \
  X(int64_t, routing_groups_per_sequence, model, routing_groups_per_sequence,                                \
    "Parts of a sequence that are routed, and lose tokens, on their own.")                                   \
  X(double, moe_aux_loss_coeff, model, aux_loss_coeff, "Coefficient of the load-balancing loss.")            \
  X(std::string, moe_aux_loss_scope, model, aux_loss_scope, "sequence, microbatch or global_batch.")         \
  X(double, moe_z_loss_coeff, model, z_loss_coeff, "Coefficient of the router's z-loss.")                    \
  X(double, rotary_base, model, rope_theta, "Base of the rotary frequencies.")                               \
  X(double, norm_epsilon, model, norm_eps, "Epsilon of RMSNorm.")                                            \
  X(double, init_method_std, model, init_std, "Standard deviation of initial weights.")                      \
  X(std::string, dtype, model, dtype, "f32 or f64.")                                                         \
  X(int64_t, world_size, strategy, world_size, "Ranks; 0: the product of the sizes below.")                  \
  X(int64_t, pipeline_model_parallel_size, strategy, pipeline_model_parallel_size, "Pipeline stages.")       \
  X(int64_t, data_parallel_size, strategy, data_parallel_size,                                               \
    "Data-parallel ranks; 0: what world_size leaves.")                                                       \
  X(int64_t, context_parallel_size, strategy, context_parallel_size,                                         \
    "Ranks that share a sequence in attention.")                                                             \
  X(int64_t, tensor_model_parallel_size, strategy, tensor_model_parallel_size, "Ranks that share a layer.")  \
  X(int64_t, expert_model_parallel_size, strategy, expert_model_parallel_size,                               \
    "Ranks that share the experts of a layer; taken from the ranks of a stage, they do not multiply the "    \
    "world.")                                                                                                \
  X(int64_t, expert_tensor_parallel_size, strategy, expert_tensor_parallel_size,                             \
    "Ranks that share one expert; 0: as tensor_model_parallel_size.")                                        \
  X(int64_t, zero_stage, strategy, zero_stage,                                                               \
    "0, 1 (optimizer), 2 (and gradients) or 3 (and parameters) sharded.")                                    \
  X(int64_t, expert_zero_stage, strategy, expert_zero_stage, "The same for experts; -1: as zero_stage.")     \
  X(int64_t, zero_dp_size, strategy, zero_dp_size,                                                           \
    "Data ranks, the innermost, that share one copy of ZeRO's state; 0: all.")                               \
  X(int64_t, expert_zero_dp_size, strategy, expert_zero_dp_size, "The same for experts.")                    \
  X(std::string, cp_attention, strategy, cp_attention,                                                       \
    "How attention meets the keys of other context ranks: gather, ring, or auto, by cost.")                  \
  X(std::string, cp_order, strategy, cp_order,                                                               \
    "Which part of a sequence a context rank has: contiguous, zigzag (balanced), or auto.")                  \
  X(int64_t, devices_per_node, strategy, devices_per_node,                                                   \
    "Consecutive ranks that share a node; 0: all of them.")                                                  \
  X(std::string, hierarchical_collectives, strategy, hierarchical_collectives,                               \
    "Collectives across nodes in two levels: on, off, or auto, by cost.")                                    \
  X(std::string, schedule, strategy, schedule,                                                               \
    "1f1b, gpipe, interleaved, zb-h1, zb-v, dualpipe or file:PATH of a table.")                              \
  X(int64_t, virtual_pipeline_model_parallel_size, strategy, virtual_pipeline_model_parallel_size,           \
    "Chunks of layers per stage.")                                                                           \
  X(std::string, recompute_granularity, strategy, recompute_granularity,                                     \
    "What the backward computes again: none, selective, full, auto, or ops (nn.rms_norm+nn.swiglu).")        \
  X(std::string, recompute_budget, strategy, recompute_budget,                                               \
    "Of auto: bytes of a rank for what the backward keeps (512KiB, 38.5MiB); empty: what memory_limit "      \
    "leaves.")                                                                                               \
  X(std::string, memory_limit, strategy, memory_limit,                                                       \
    "Bytes of a rank that the plan must fit; empty: none.")                                                  \
  X(std::string, moe_token_dispatcher_type, strategy, moe_token_dispatcher_type,                             \
    "How tokens reach experts on other ranks: alltoall, allgather, or auto (fewer bytes).")                  \
  X(std::string, main_grads_dtype, strategy, main_grads_dtype,                                               \
    "In which gradients are summed: fp32, or what --bf16 or --fp16 computes in.")                            \
  X(std::string, compress_dispatch, strategy, compress_dispatch,                                             \
    "Wire format of tokens on their way to experts: bf16 or f8; empty: as computed.")                        \
  X(std::string, compress_combine, strategy, compress_combine, "The same on their way back.")                \
  X(std::string, compress_gather, strategy, compress_gather,                                                 \
    "The same for parameters: gathered ones of ZeRO-3, narrow copies of ZeRO-1, -2.")                        \
  X(std::string, compress_grad, strategy, compress_grad, "The same for reductions of gradients.")            \
  X(double, moe_overload_factor, strategy, moe_overload_factor,                                              \
    "Dropless: rows that the arena holds, as a multiple of the expected; 0: the worst case.")                \
  X(std::string, expert_axis_order, strategy, expert_axis_order, "fold or reversed; empty: the cheaper.")    \
  X(int64_t, expert_slots, strategy, expert_slots,                                                           \
    "Slots that the experts of a layer are stored in, a multiple of expert_model_parallel_size; 0: as many " \
    "as experts.")                                                                                           \
  X(std::string, expert_map, strategy, expert_map,                                                           \
    "What the expert slots hold, such as 0,1,2,3,0,-1: an expert, a replica of one, or nothing (-1); "       \
    "empty: the experts in order, spread evenly.")                                                           \
  X(std::string, target, cluster, target,                                                                    \
    "Devices that the plan is made for: cpu, a100, h100 or h200; empty: cpu.")                               \
  X(double, link_gbytes_per_second, cluster, link_gbytes_per_second,                                         \
    "Bandwidth of a device to others of its node; 0: the target's.")                                         \
  X(double, link_microseconds, cluster, link_microseconds,                                                   \
    "Time of a message inside a node; 0: the target's.")                                                     \
  X(double, node_gbytes_per_second, cluster, node_gbytes_per_second,                                         \
    "Bandwidth of a device to other nodes; 0: the target's.")                                                \
  X(double, node_microseconds, cluster, node_microseconds,                                                   \
    "Time of a message between nodes; 0: the target's.")                                                     \
  X(int64_t, ddp_bucket_size, strategy, ddp_bucket_size,                                                     \
    "Bytes of collectives that travel together; 0: each alone; -1: as the target likes.")                    \
  X(int64_t, moe_chunks, strategy, moe_chunks, "Parts in which experts are exchanged and computed.")         \
  X(std::string, overlap, strategy, overlap, "on or off: communication beside compute; empty: by target.")   \
  X(std::string, data_path, train, data_path, "Plain text; empty: the text that setup.sh makes.")            \
  X(double, held_out_fraction, train, held_out_fraction,                                                     \
    "Share of the text, from its end, kept for evaluation.")                                                 \
  X(int64_t, train_iters, train, train_iters, "Steps.")                                                      \
  X(int64_t, global_batch_size, train, global_batch_size, "Samples per step.")                               \
  X(int64_t, micro_batch_size, train, micro_batch_size, "Samples per microbatch and data-parallel rank.")    \
  X(double, lr, train, lr, "Peak learning rate.")                                                            \
  X(double, min_lr, train, min_lr, "Learning rate at the end.")                                              \
  X(int64_t, lr_warmup_iters, train, lr_warmup_iters, "Steps of linear warm-up.")                            \
  X(double, weight_decay, train, weight_decay, "Decoupled weight decay.")                                    \
  X(double, adam_beta1, train, adam_beta1, "Decay of the first moment.")                                     \
  X(double, adam_beta2, train, adam_beta2, "Decay of the second moment.")                                    \
  X(double, adam_eps, train, adam_eps, "Epsilon of AdamW.")                                                  \
  X(double, clip_grad, train, clip_grad, "Largest global gradient norm; 0: no clipping.")                    \
  X(uint64_t, seed, train, seed, "Seed of initial weights and of the data order.")                           \
  X(double, initial_loss_scale, train, initial_loss_scale, "With --fp16: the first loss scale.")             \
  X(double, min_loss_scale, train, min_loss_scale, "With --fp16: the least loss scale.")                     \
  X(int64_t, loss_scale_window, train, loss_scale_window,                                                    \
    "With --fp16: finite steps in a row after which the loss scale doubles.")                                \
  X(int64_t, hysteresis, train, hysteresis, "With --fp16: non-finite steps before the loss scale halves.")   \
  X(int64_t, log_interval, train, log_interval, "Steps between progress lines.")                             \
  X(int64_t, eval_interval, train, eval_interval, "Steps between evaluations; 0: at the end only.")          \
  X(int64_t, eval_samples, train, eval_samples, "Held-out samples per evaluation; 0: all.")                  \
  X(int64_t, save_interval, train, save_interval, "Steps between checkpoints; 0: at the end only.")          \
  X(int64_t, max_consecutive_skips, train, max_consecutive_skips,                                            \
    "Non-finite steps in a row that stop the run.")                                                          \
  X(std::string, length_buckets, train, length_buckets,                                                      \
    "Lengths as in 64,128,256: samples are lines of the text, each padded to the shortest that holds it; a " \
    "plan is compiled for each. Empty: windows of seq_length.")                                              \
  X(int64_t, micro_batch_interval, train, micro_batch_interval,                                              \
    "Steps between rounds of measuring, with --adaptive_micro_batch_size; 0: one round.")                    \
  X(std::string, device, train, device, "Where the ranks live: cpu or cuda; empty: as --target says.")       \
  X(std::string, run_dir, train, run_dir, "Folder of the run; empty: runs/<date-time>.")                     \
  X(std::string, resume, train, resume, "A checkpoint, or a folder of checkpoints whose latest is taken.")

// flag, part of RunConfig, its field, help. Apart, because --flag and --noflag work for plain bools only.
#define MOE_SWITCH_FLAGS(X)                                                                                  \
  X(norm_topk_prob, model, norm_topk_prob, "Renormalise the chosen probabilities to sum 1.")                 \
  X(tie_embeddings, model, tie_embeddings, "The head shares the embedding's weights.")                       \
  X(bf16, strategy, bf16, "Compute in bf16, with f32 masters, gradients, statistics and router.")            \
  X(fp16, strategy, fp16, "The same in f16, with a dynamic loss scale.")                                     \
  X(fp8_experts, strategy, fp8_experts,                                                                      \
    "With bf16: products of experts in e4m3 with a scale per 128 values.")                                   \
  X(sequence_parallel, strategy, sequence_parallel,                                                          \
    "Norms and residuals sharded by sequence over tensor ranks.")                                            \
  X(vocab_parallel, strategy, vocab_parallel, "Embedding and head sharded by vocabulary over tensor ranks.") \
  X(allow_shorter_sequences, train, allow_shorter_sequences,                                                 \
    "Halve the sequence where no micro_batch_size fits the memory limit.")                                   \
  X(adaptive_micro_batch_size, train, adaptive_micro_batch_size,                                             \
    "Measure several microbatch sizes while training, and keep the fastest.")                                \
  X(cudnn_attention, train, cudnn_attention,                                                                 \
    "With --device=cuda: attention by cuDNN's kernels where they compute the same.")                         \
  X(tf32, train, tf32,                                                                                       \
    "With --device=cuda: dense products of f32 may round their operands to TF32, of 10 bits of mantissa.")   \
  X(split_tensor_by_kv_heads, strategy, split_tensor_by_kv_heads,                                            \
    "With more tensor ranks than key-value heads, split those ranks by heads and repeat the rest.")

#define MOE_DEFINE(type, flag, part, field, help) ABSL_FLAG(absl::optional<type>, flag, absl::nullopt, help);
MOE_VALUE_FLAGS(MOE_DEFINE)
#undef MOE_DEFINE

// A plain bool cannot say that it was not given. Abseil calls OnUpdate once when it registers the flag, and
// then each time that the flag is set.
#define MOE_DEFINE(flag, part, field, help) \
  static int updates_of_##flag = 0;         \
  ABSL_FLAG(bool, flag, false, help " (If not given: as configured.)").OnUpdate([] { ++updates_of_##flag; });
MOE_SWITCH_FLAGS(MOE_DEFINE)
#undef MOE_DEFINE

namespace moe::train {

absl::StatusOr<RunConfig> RunConfigFromFlags() {
  RunConfig config = DefaultRunConfig();
  if (const std::string path = absl::GetFlag(FLAGS_config); !path.empty()) {
    RETURN_IF_ERROR(Annotate(MergeRunConfigFile(path, config), "--config"));
  }
  if (const std::string path = absl::GetFlag(FLAGS_model); !path.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 24));
    config.clear_model();
    RETURN_IF_ERROR(Annotate(MergeTextproto(text, path, *config.mutable_model()), "--model"));
  }
  if (const std::string words = absl::GetFlag(FLAGS_strategy); !words.empty()) {
    const absl::StatusOr<passes::Strategy> strategy = passes::ParseStrategy(words);
    if (!strategy.ok()) return Annotate(strategy.status(), "--strategy");
    config.mutable_strategy()->set_world_size(0);
    SetStrategy(*strategy, config);
  }
#define MOE_OVERLAY(type, flag, part, field, help) \
  if (const auto value = absl::GetFlag(FLAGS_##flag)) config.mutable_##part()->set_##field(*value);
  MOE_VALUE_FLAGS(MOE_OVERLAY)
#undef MOE_OVERLAY
#define MOE_OVERLAY(flag, part, field, help) \
  if (updates_of_##flag > 1) config.mutable_##part()->set_##field(absl::GetFlag(FLAGS_##flag));
  MOE_SWITCH_FLAGS(MOE_OVERLAY)
#undef MOE_OVERLAY
  return ResolveRunConfig(std::move(config));
}

std::vector<std::string> RunConfigFlagNames() {
  std::vector<std::string> names;
#define MOE_NAME(type, flag, part, field, help) names.push_back(#flag);
  MOE_VALUE_FLAGS(MOE_NAME)
#undef MOE_NAME
#define MOE_NAME(flag, part, field, help) names.push_back(#flag);
  MOE_SWITCH_FLAGS(MOE_NAME)
#undef MOE_NAME
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace moe::train
