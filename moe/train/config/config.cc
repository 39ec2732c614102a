#include "moe/train/config/config.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/base/textproto.h"
#include "moe/cost/targets.h"
#include "moe/model/config.h"

namespace moe::train {
namespace {

bool MulFits(int64_t a, int64_t b, int64_t* out) { return !__builtin_mul_overflow(a, b, out); }

}  // namespace

RunConfig DefaultRunConfig() {
  RunConfig config;
  model::ModelConfig& model = *config.mutable_model();
  model.set_name("tiny_moe");
  model.set_num_layers(4);
  model.set_hidden_size(128);
  model.set_num_attention_heads(8);
  model.set_num_key_value_heads(4);
  model.set_vocab_size(256);
  model.set_seq_length(128);
  model.set_num_experts(8);
  model.set_moe_router_topk(2);
  model.set_moe_ffn_hidden_size(192);
  model.set_norm_topk_prob(true);
  model.set_capacity_factor(1.25);
  model.set_aux_loss_coeff(0.01);
  model.set_z_loss_coeff(0.001);

  StrategyConfig& strategy = *config.mutable_strategy();
  strategy.set_pipeline_model_parallel_size(2);
  strategy.set_data_parallel_size(2);
  strategy.set_context_parallel_size(1);
  strategy.set_tensor_model_parallel_size(2);
  strategy.set_expert_model_parallel_size(2);
  strategy.set_expert_zero_stage(-1);
  strategy.set_schedule("1f1b");
  strategy.set_virtual_pipeline_model_parallel_size(1);
  strategy.set_recompute_granularity("selective");
  strategy.set_split_tensor_by_kv_heads(true);
  strategy.set_ddp_bucket_size(-1);
  strategy.set_moe_chunks(1);
  strategy.set_main_grads_dtype("fp32");

  TrainConfig& train = *config.mutable_train();
  train.set_held_out_fraction(0.05);
  train.set_train_iters(260);
  train.set_global_batch_size(32);
  train.set_micro_batch_size(4);
  train.set_lr(4e-3);
  train.set_min_lr(4e-4);
  train.set_lr_warmup_iters(20);
  train.set_weight_decay(0.1);
  train.set_adam_beta1(0.9);
  train.set_adam_beta2(0.95);
  train.set_adam_eps(1e-8);
  train.set_clip_grad(1);
  train.set_seed(1);
  train.set_log_interval(10);
  train.set_max_consecutive_skips(10);
  return config;
}

absl::Status MergeRunConfigFile(const std::string& path, RunConfig& config) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 24));
  return MergeTextproto(text, path, config);
}

RunConfig ResolveRunConfig(RunConfig config) {
  *config.mutable_model() = model::ResolveModelConfig(config.model());
  StrategyConfig& s = *config.mutable_strategy();
  if (s.pipeline_model_parallel_size() == 0) s.set_pipeline_model_parallel_size(1);
  if (s.context_parallel_size() == 0) s.set_context_parallel_size(1);
  if (s.tensor_model_parallel_size() == 0) s.set_tensor_model_parallel_size(1);
  if (s.expert_model_parallel_size() == 0) s.set_expert_model_parallel_size(1);
  if (s.virtual_pipeline_model_parallel_size() == 0) s.set_virtual_pipeline_model_parallel_size(1);
  if (s.schedule().empty()) s.set_schedule("1f1b");
  if (s.recompute_granularity().empty()) s.set_recompute_granularity("none");
  if (s.main_grads_dtype().empty()) s.set_main_grads_dtype("fp32");
  if (s.cp_attention().empty()) s.set_cp_attention("auto");
  if (s.cp_order().empty()) s.set_cp_order("auto");
  if (s.hierarchical_collectives().empty()) s.set_hierarchical_collectives("auto");
  if (s.moe_token_dispatcher_type().empty()) s.set_moe_token_dispatcher_type("auto");
  const bool experts = config.model().num_experts() > 0;
  // A dense model has no experts to spread; a default meant for another model must not stand in its way.
  if (!experts) s.set_expert_model_parallel_size(1);
  if (s.expert_tensor_parallel_size() == 0) {
    s.set_expert_tensor_parallel_size(experts ? std::max<int64_t>(1, s.tensor_model_parallel_size()) : 1);
  }
  int64_t others = s.pipeline_model_parallel_size();
  const bool fits = MulFits(others, s.context_parallel_size(), &others) &&
                    MulFits(others, s.tensor_model_parallel_size(), &others) && others > 0;
  if (s.data_parallel_size() == 0) {
    s.set_data_parallel_size(fits && s.world_size() >= others ? s.world_size() / others : 1);
  }

  config.mutable_cluster();  // its zeros stand for the target's own figures
  TrainConfig& t = *config.mutable_train();
  if (t.data_path().empty()) t.set_data_path(DefaultDataPath());
  if (t.micro_batch_size() == 0) t.set_micro_batch_size(1);
  if (t.initial_loss_scale() == 0) t.set_initial_loss_scale(65536);
  if (t.min_loss_scale() == 0) t.set_min_loss_scale(1);
  if (t.loss_scale_window() == 0) t.set_loss_scale_window(1000);
  if (t.hysteresis() == 0) t.set_hysteresis(2);
  if (t.log_interval() == 0) t.set_log_interval(1);
  if (t.max_consecutive_skips() == 0) t.set_max_consecutive_skips(10);
  return config;
}

int64_t NumMicrobatches(const RunConfig& config) {
  int64_t samples = 0;
  const int64_t global = config.train().global_batch_size();
  if (!MulFits(config.train().micro_batch_size(), config.strategy().data_parallel_size(), &samples)) return 0;
  return samples > 0 && global > 0 && global % samples == 0 ? global / samples : 0;
}

passes::Strategy StrategyOf(const RunConfig& config) {
  const StrategyConfig& c = config.strategy();
  passes::Strategy s;
  s.pp = c.pipeline_model_parallel_size();
  s.dp = c.data_parallel_size();
  s.cp = c.context_parallel_size();
  s.tp = c.tensor_model_parallel_size();
  s.ep = c.expert_model_parallel_size();
  s.etp = c.expert_tensor_parallel_size();
  s.sequence_parallel = c.sequence_parallel();
  s.vocab_parallel = c.vocab_parallel();
  s.zero = static_cast<int>(c.zero_stage());
  s.expert_zero = static_cast<int>(c.expert_zero_stage());
  s.microbatches = std::max<int64_t>(1, NumMicrobatches(config));
  s.schedule = c.schedule();
  s.virtual_chunks = c.virtual_pipeline_model_parallel_size();
  s.checkpoint = c.recompute_granularity();
  s.checkpoint_budget =
      c.recompute_budget().empty() ? 0 : passes::ParseByteSize(c.recompute_budget()).value_or(0);
  s.memory_limit = c.memory_limit().empty() ? 0 : passes::ParseByteSize(c.memory_limit()).value_or(0);
  s.dispatcher = c.moe_token_dispatcher_type();
  s.precision = c.fp16() ? "f16" : c.bf16() ? "bf16" : "";
  const std::string& grads = c.main_grads_dtype();
  s.grads = grads == "fp32" ? "" : grads == "fp16" ? "f16" : grads;
  s.fp8_experts = c.fp8_experts();
  s.compress_dispatch = c.compress_dispatch();
  s.compress_combine = c.compress_combine();
  s.compress_gather = c.compress_gather();
  s.compress_grad = c.compress_grad();
  s.overload = c.moe_overload_factor();
  s.ep_order = c.expert_axis_order();
  s.kv_axis = c.split_tensor_by_kv_heads();
  s.expert_slots = c.expert_slots();
  if (!c.expert_map().empty()) {  // what is malformed is told by ValidateRunConfig
    if (auto map = passes::ParseExpertMap(c.expert_map()); map.ok()) s.expert_map = *std::move(map);
  }
  s.zero_dp = c.zero_dp_size();
  s.expert_zero_dp = c.expert_zero_dp_size();
  const auto word = [](const std::string& choice) { return choice.empty() ? "auto" : choice; };
  s.cp_attention = word(c.cp_attention());
  s.cp_order = word(c.cp_order());
  s.devices_per_node = c.devices_per_node();
  s.hierarchical = word(c.hierarchical_collectives());
  s.bucket = c.ddp_bucket_size();
  s.overlap = c.overlap();
  s.moe_chunks = std::max<int64_t>(1, c.moe_chunks());
  return s;
}

cost::Target TargetOf(const RunConfig& config) {
  const ClusterConfig& c = config.cluster();
  // An unknown name is for ValidateRunConfig to refuse.
  const bool some_gpu = c.target().empty() && config.train().device() == "cuda";
  cost::Target t = cost::NamedTarget(some_gpu ? "h100" : c.target()).value_or(cost::Target());
  const auto set = [](double value, double unit, double* field) {
    if (value > 0) *field = value * unit;
  };
  set(c.link_gbytes_per_second(), 1e9, &t.link_bytes_per_second);
  set(c.link_microseconds(), 1e-6, &t.link_latency_seconds);
  set(c.node_gbytes_per_second(), 1e9, &t.node_bytes_per_second);
  set(c.node_microseconds(), 1e-6, &t.node_latency_seconds);
  if (config.train().cudnn_attention()) t.libraries.insert("cudnn");
  return t;
}

void SetStrategy(const passes::Strategy& s, RunConfig& config) {
  StrategyConfig& c = *config.mutable_strategy();
  c.set_pipeline_model_parallel_size(s.pp);
  c.set_data_parallel_size(s.dp);
  c.set_context_parallel_size(s.cp);
  c.set_tensor_model_parallel_size(s.tp);
  c.set_expert_model_parallel_size(s.ep);
  c.set_expert_tensor_parallel_size(s.etp);
  c.set_sequence_parallel(s.sequence_parallel);
  c.set_vocab_parallel(s.vocab_parallel);
  c.set_zero_stage(s.zero);
  c.set_expert_zero_stage(s.expert_zero);
  c.set_schedule(s.schedule);
  c.set_virtual_pipeline_model_parallel_size(s.virtual_chunks);
  c.set_recompute_granularity(s.checkpoint);
  c.set_recompute_budget(s.checkpoint_budget > 0 ? passes::ByteSizeToString(s.checkpoint_budget) : "");
  c.set_memory_limit(s.memory_limit > 0 ? passes::ByteSizeToString(s.memory_limit) : "");
  c.set_moe_token_dispatcher_type(s.dispatcher);
  c.set_bf16(s.precision == "bf16");
  c.set_fp16(s.precision == "f16");
  c.set_main_grads_dtype(s.grads.empty() ? "fp32" : s.grads == "f16" ? "fp16" : s.grads);
  c.set_fp8_experts(s.fp8_experts);
  c.set_compress_dispatch(s.compress_dispatch);
  c.set_compress_combine(s.compress_combine);
  c.set_compress_gather(s.compress_gather);
  c.set_compress_grad(s.compress_grad);
  c.set_moe_overload_factor(s.overload);
  c.set_expert_axis_order(s.ep_order);
  c.set_split_tensor_by_kv_heads(s.kv_axis);
  c.set_expert_slots(s.expert_slots);
  c.set_expert_map(absl::StrJoin(s.expert_map, ","));
  c.set_zero_dp_size(s.zero_dp);
  c.set_expert_zero_dp_size(s.expert_zero_dp);
  c.set_cp_attention(s.cp_attention);
  c.set_cp_order(s.cp_order);
  c.set_devices_per_node(s.devices_per_node);
  c.set_hierarchical_collectives(s.hierarchical);
  c.set_ddp_bucket_size(s.bucket);
  c.set_overlap(s.overlap);
  c.set_moe_chunks(s.moe_chunks);
  const int64_t per_step = s.microbatches * s.dp;
  if (s.microbatches > 1 && per_step > 0) {
    config.mutable_train()->set_micro_batch_size(
        std::max<int64_t>(1, config.train().global_batch_size() / per_step));
  }
}

absl::StatusOr<std::vector<int64_t>> LengthsOf(const RunConfig& config) {
  const std::string& text = config.train().length_buckets();
  std::vector<int64_t> out;
  if (text.empty()) return std::vector<int64_t>{config.model().seq_length()};
  for (const absl::string_view word : absl::StrSplit(text, ',')) {
    int64_t length = 0;
    if (!absl::SimpleAtoi(word, &length) || length < 2 || (!out.empty() && length <= out.back())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "length_buckets = '", text, "': must be ascending lengths of at least 2, as in 64,128,256"));
    }
    out.push_back(length);
  }
  return out;
}

std::string RunConfigToText(const RunConfig& config) { return PrintTextproto(config); }

std::string DefaultDataPath() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const std::string base =
      cache != nullptr && *cache ? std::string(cache) : JoinPath(home != nullptr ? home : "", ".cache");
  return JoinPath(base, "switchyard/english.txt");
}

std::string DescribeStrategy(const RunConfig& config) {
  const passes::Strategy s = StrategyOf(config);
  std::vector<std::string> degrees;
  if (s.pp > 1) degrees.push_back(absl::StrCat("pp ", s.pp));
  if (s.dp > 1) degrees.push_back(absl::StrCat("dp ", s.dp));
  if (s.cp > 1) degrees.push_back(absl::StrCat("cp ", s.cp));
  if (s.tp > 1) degrees.push_back(absl::StrCat("tp ", s.tp));
  std::string line = absl::StrCat(s.world(), s.world() == 1 ? " virtual device" : " virtual devices");
  if (!degrees.empty()) absl::StrAppend(&line, "   ", absl::StrJoin(degrees, " x "));
  if (s.sequence_parallel) absl::StrAppend(&line, ", sequence parallel");
  if (s.vocab_parallel) absl::StrAppend(&line, ", vocabulary parallel");
  if (s.zero > 0) absl::StrAppend(&line, ", ZeRO-", s.zero);
  if (s.zero_dp > 0) absl::StrAppend(&line, " over ", s.zero_dp);
  if (!s.precision.empty()) absl::StrAppend(&line, ", ", s.precision);
  if (!s.grads.empty()) absl::StrAppend(&line, ", gradients in ", s.grads);
  if (config.model().num_experts() > 0) {
    absl::StrAppend(&line, "   experts: ep ", s.ep, ", edp ", s.edp(), ", etp ", s.etp);
    if (s.expert_zero >= 0 && s.expert_zero != s.zero) absl::StrAppend(&line, ", ZeRO-", s.expert_zero);
    if (s.expert_zero_dp > 0) absl::StrAppend(&line, ", state over ", s.expert_zero_dp);
  }
  const std::string schedule = s.schedule == "1f1b"       ? "1F1B"
                               : s.schedule == "gpipe"    ? "GPipe"
                               : s.schedule == "zb-h1"    ? "ZB-H1"
                               : s.schedule == "zb-v"     ? "ZB-V"
                               : s.schedule == "dualpipe" ? "DualPipe"
                                                          : s.schedule;
  absl::StrAppend(&line, "   ", schedule, ", ", s.microbatches,
                  s.microbatches == 1 ? " microbatch of " : " microbatches of ",
                  config.train().micro_batch_size() * s.dp, " x ", config.model().seq_length());
  return line;
}

}  // namespace moe::train
