#include "moe/train/config/config.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <utility>
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
#include "moe/strategy/word.h"

namespace moe::train {
namespace {

// The strategy with its text's words alone: microbatches are those that it names.
strategy::Strategy ReadStrategy(const RunConfig& config) {
  strategy::Strategy s = strategy::ParseWords(config.strategy()).strategy;
  strategy::Resolve(config.model().num_experts() > 0, s);
  return s;
}

// Of the samples of a step, those of a microbatch, and `microbatches`, what two of them leave. A number of
// microbatches that contradicts stays in the strategy's text, for ValidateRunConfig.
void ResolveBatch(const strategy::ParsedStrategy& parsed, RunConfig& config) {
  TrainConfig& train = *config.mutable_train();
  if (!parsed.Names("microbatches")) return;
  const int64_t m = parsed.strategy.microbatches, dp = ReadStrategy(config).dp;
  int64_t parts = 0, samples = 0;
  if (m < 1 || dp < 1 || __builtin_mul_overflow(m, dp, &parts)) return;
  if (train.has_micro_batch_size() && !train.has_global_batch_size()) {
    if (__builtin_mul_overflow(parts, train.micro_batch_size(), &samples)) return;
    train.set_global_batch_size(samples);
  }
  if (!train.has_micro_batch_size()) {
    // 1 is wrong for no other reason.
    train.set_micro_batch_size(train.global_batch_size() % parts == 0 ? train.global_batch_size() / parts
                                                                      : 1);
  }
}

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

  config.set_strategy("pp=2 dp=2 tp=2 ep=4 sp zero=1 checkpoint=selective");
  return config;
}

absl::Status MergeRunConfigFile(const std::string& path, RunConfig& config) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTextprotoBytes));
  RETURN_IF_ERROR(MergeTextproto(text, path, config));
  RunConfig alone;
  RETURN_IF_ERROR(MergeTextproto(text, path, alone));
  if (!alone.train().data_path().empty()) {
    const std::string folder = std::filesystem::path(path).parent_path().string();
    config.mutable_train()->set_data_path(JoinPath(folder, alone.train().data_path()));
  }
  return absl::OkStatus();
}

RunConfig ResolveRunConfig(RunConfig config) {
  *config.mutable_model() = model::ResolveModelConfig(config.model());
  const strategy::ParsedStrategy parsed = strategy::ParseWords(config.strategy());
  ResolveBatch(parsed, config);
  config.mutable_cluster();
  SetDefaults(config);
  if (!config.train().has_data_path()) config.mutable_train()->set_data_path(DefaultDataPath());
  if (parsed.problems.empty()) {
    strategy::Strategy s = ReadStrategy(config);
    const int64_t named = parsed.Names("microbatches") ? std::exchange(s.microbatches, 1) : 0;
    config.set_strategy(s.ToString());
    if (named > 0 && named != NumMicrobatches(config)) {
      absl::StrAppend(config.mutable_strategy(), " microbatches=", named);
    }
  }
  return config;
}

int64_t NumMicrobatches(const RunConfig& config) {
  const int64_t global = config.train().global_batch_size(), dp = ReadStrategy(config).dp;
  int64_t samples = 0;
  if (__builtin_mul_overflow(config.train().micro_batch_size(), dp, &samples)) return 0;
  return samples > 0 && global > 0 && global % samples == 0 ? global / samples : 0;
}

strategy::Strategy StrategyOf(const RunConfig& config) {
  strategy::Strategy s = ReadStrategy(config);
  s.world_size = 0;  // the sizes say it
  s.microbatches = std::max<int64_t>(1, NumMicrobatches(config));
  return s;
}

void SetStrategy(const strategy::Strategy& strategy, RunConfig& config) {
  config.set_strategy(strategy.ToString());
  if (strategy.microbatches > 1) config.mutable_train()->clear_micro_batch_size();
}

void SetWords(absl::string_view words, RunConfig& config) {
  config.set_strategy(absl::StrCat(config.strategy(), " ", words));
  const strategy::ParsedStrategy parsed = strategy::ParseWords(config.strategy());
  if (parsed.problems.empty()) config.set_strategy(parsed.strategy.ToString());
}

cost::Target TargetOf(const RunConfig& config) {
  const ClusterConfig& c = config.cluster();
  // An unknown name is for ValidateRunConfig to refuse.
  const bool some_gpu = !c.has_target() && config.train().device() == "cuda";
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
  return std::filesystem::absolute(JoinPath(base, "switchyard/english.txt")).string();
}

std::string DescribeStrategy(const RunConfig& config) {
  const strategy::Strategy s = StrategyOf(config);
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
  if (s.precision != strategy::Precision::kAsModel) absl::StrAppend(&line, ", ", strategy::Name(s.precision));
  if (s.grads != strategy::GradientType::kF32) {
    absl::StrAppend(&line, ", gradients in ", strategy::Name(s.grads));
  }
  if (config.model().num_experts() > 0) {
    absl::StrAppend(&line, "   experts: ep ", s.ep, ", edp ", s.edp(), ", etp ", s.etp);
    if (s.expert_zero >= 0 && s.expert_zero != s.zero) absl::StrAppend(&line, ", ZeRO-", s.expert_zero);
    if (s.expert_zero_dp > 0) absl::StrAppend(&line, ", state over ", s.expert_zero_dp);
  }
  const std::map<strategy::ScheduleKind, std::string> titles = {
      {strategy::ScheduleKind::k1F1B, "1F1B"},
      {strategy::ScheduleKind::kGPipe, "GPipe"},
      {strategy::ScheduleKind::kZbH1, "ZB-H1"},
      {strategy::ScheduleKind::kZbV, "ZB-V"},
      {strategy::ScheduleKind::kDualPipe, "DualPipe"}};
  const auto title = titles.find(s.schedule.kind);
  const std::string schedule = title == titles.end() ? s.schedule.ToString() : title->second;
  absl::StrAppend(&line, "   ", schedule, ", ", s.microbatches,
                  s.microbatches == 1 ? " microbatch of " : " microbatches of ",
                  config.train().micro_batch_size() * s.dp, " x ", config.model().seq_length());
  return line;
}

}  // namespace moe::train
