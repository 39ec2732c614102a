#include "moe/train/config/validate.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/cost/targets.h"
#include "moe/model/config.h"
#include "moe/strategy/nearest.h"
#include "moe/strategy/word.h"

namespace moe::train {
namespace {

constexpr int64_t kByteVocabulary = 256;

// Absurd sizes are problems of the model, told elsewhere; here they must not cost time.
int64_t Sane(int64_t size) { return size >= 1 && size <= strategy::kMaxSize ? size : 0; }

constexpr int64_t kMostLayers = 100'000;  // that are looked at

bool HasLayer(const model::ModelConfig& model, bool moe) {
  if (moe && (model.num_experts() < 1 || model.moe_layer_freq() < 1)) return false;
  for (int64_t l = 0; l < std::min<int64_t>(model.num_layers(), kMostLayers); ++l) {
    if (IsMoeLayer(model, l) == moe) return true;
  }
  return false;
}

// `microbatches` that the batch sizes do not have; see ResolveRunConfig.
void MicrobatchProblems(const RunConfig& config, strategy::Report& out) {
  const strategy::ParsedStrategy parsed = strategy::ParseWords(config.strategy());
  if (!parsed.Names("microbatches")) return;
  const int64_t m = parsed.strategy.microbatches, dp = StrategyOf(config).dp;
  const int64_t global = config.train().global_batch_size(), found = NumMicrobatches(config);
  int64_t parts = 0;
  if (m < 1 || dp < 1 || found == m || Sane(global) == 0 || __builtin_mul_overflow(m, dp, &parts)) return;
  if (global % parts != 0) {
    out.Add("microbatches = ", m, " x data_parallel_size = ", dp,
            " does not divide global_batch_size = ", global)
        .legal =
        absl::StrCat(global % dp == 0 ? absl::StrCat("microbatches that divide ", global / dp, ", or ") : "",
                     "global_batch_size of ", std::max<int64_t>(1, global / parts) * parts);
    return;
  }
  out.Add("microbatches = ", m, " with micro_batch_size = ", config.train().micro_batch_size(),
          ", which makes ", found, " of global_batch_size = ", global)
      .legal = absl::StrCat("one of the two left out, or micro_batch_size = ", global / parts);
}

// What is wrong with the strategy and otherwise, in one error; of `others`, those of the model stand first.
absl::Status Refuse(const RunConfig& config, const Compiles& compiles, std::vector<strategy::Problem> others,
                    size_t of_model) {
  std::vector<strategy::Problem> problems = StrategyProblems(config);
  const bool of_strategy = !problems.empty(), only_strategy = others.empty();
  problems.insert(problems.begin(), others.begin(), others.begin() + of_model);
  problems.insert(problems.end(), others.begin() + of_model, others.end());
  if (problems.empty()) return absl::OkStatus();
  std::string text =
      absl::StrCat(only_strategy ? "this strategy cannot be built; " : "this configuration cannot be built; ",
                   problems.size(), problems.size() == 1 ? " problem\n" : " problems\n");
  for (size_t i = 0; i < problems.size(); ++i) {
    absl::StrAppend(&text, "\n", i + 1 < 10 ? "  " : " ", i + 1, "  ", problems[i].what);
    if (!problems[i].legal.empty()) absl::StrAppend(&text, "\n     legal here: ", problems[i].legal);
  }
  if (!of_strategy) return absl::InvalidArgumentError(text);
  // A model or a batch that is wrong itself compiles with no strategy.
  const std::optional<RunConfig> nearest = NearestLegalStrategy(config, only_strategy ? compiles : nullptr);
  if (!nearest) {
    absl::StrAppend(&text, "\n\nno legal strategy is near; the model or the batch must change first");
    return absl::InvalidArgumentError(text);
  }
  const strategy::ParsedStrategy given = strategy::ParseWords(config.strategy());
  const strategy::Nearest found = {strategy::ParseWords(nearest->strategy()).strategy,
                                   nearest->train().micro_batch_size()};
  absl::StrAppend(&text, "\n\nnearest legal strategy:  ",
                  strategy::DescribeNearest(given.strategy, found, FactsOf(config), given.problems));
  return absl::InvalidArgumentError(text);
}

}  // namespace

std::vector<strategy::Problem> ModelConfigProblems(const RunConfig& config) {
  strategy::Report out;
  for (const std::string& problem : model::ModelProblems(config.model())) out.Add(problem);
  const int64_t vocab = config.model().vocab_size();
  if (vocab >= 1 && vocab < kByteVocabulary) {
    out.Add("vocab_size = ", vocab, " is below the ", kByteVocabulary, " tokens of the byte tokenizer")
        .legal = absl::StrCat(kByteVocabulary, " or more");
  }
  return out.Take();
}

strategy::Facts FactsOf(const RunConfig& config) {
  const model::ModelConfig& m = config.model();
  strategy::Facts f;
  f.layers = Sane(m.num_layers());
  f.heads = Sane(m.num_attention_heads());
  f.kv_heads = Sane(m.num_key_value_heads());
  f.seq = Sane(m.seq_length());
  f.experts = Sane(m.num_experts());
  f.moe_layers = HasLayer(m, /*moe=*/true);
  if (m.moe_layer_freq() >= 1 || f.experts == 0) {
    f.dense_ffn = HasLayer(m, /*moe=*/false) ? Sane(m.ffn_hidden_size()) : 0;
  }
  f.shared_ffn = f.experts > 0 ? Sane(m.shared_expert_ffn_hidden_size()) : 0;
  f.expert_ffn = f.experts > 0 ? Sane(m.moe_ffn_hidden_size()) : 0;
  f.f64 = m.dtype() == "f64";
  f.global_aux_loss = f.experts > 0 && m.aux_loss_coeff() != 0 && m.aux_loss_scope() == "global_batch";
  f.global_batch = config.train().global_batch_size();
  f.micro_batch = config.train().micro_batch_size();
  const cost::Target target = TargetOf(config);
  if (target.f8_flops <= 0) {
    f.target_without_f8 = target.name;
    std::vector<std::string> with;
    for (const std::string& name : cost::TargetNames()) {
      if (cost::NamedTarget(name)->f8_flops > 0) with.push_back(name);
    }
    f.targets_with_f8 = absl::StrJoin(with, ", ");
  }
  return f;
}

std::vector<strategy::Problem> StrategyProblems(const RunConfig& config) {
  strategy::ParsedStrategy parsed = strategy::ParseWords(config.strategy());
  std::vector<strategy::Problem> problems = std::move(parsed.problems);
  for (strategy::Problem& p : strategy::Problems(parsed.strategy, FactsOf(config)))
    problems.push_back(std::move(p));
  return problems;
}

std::optional<RunConfig> NearestLegalStrategy(const RunConfig& config, const Compiles& compiles) {
  const auto with = [&](const strategy::Strategy& s, int64_t micro_batch) {
    RunConfig trial = config;
    SetStrategy(s, trial);
    trial.mutable_train()->set_micro_batch_size(micro_batch);
    return trial;
  };
  strategy::Accepts accepts;
  if (compiles) {
    accepts = [&](const strategy::Strategy& s, int64_t micro_batch) {
      return compiles(with(s, micro_batch));
    };
  }
  const std::optional<strategy::Nearest> nearest =
      strategy::NearestLegal(strategy::ParseWords(config.strategy()).strategy, FactsOf(config), accepts);
  if (!nearest) return std::nullopt;
  return with(nearest->strategy, nearest->micro_batch);
}

std::vector<strategy::Problem> TrainConfigProblems(const RunConfig& config) {
  strategy::Report out;
  MicrobatchProblems(config, out);
  const TrainConfig& t = config.train();
  auto at_least = [&](absl::string_view field, int64_t value, int64_t least) {
    if (value < least) out.Add(field, " = ", value).legal = absl::StrCat(least, " or more");
    if (value > kMaxConfigCount)
      out.Add(field, " = ", value).legal = absl::StrCat(least, " to ", kMaxConfigCount);
  };
  auto within = [&](absl::string_view field, double value, bool good, absl::string_view legal) {
    if (!std::isfinite(value) || !good || value > kMaxConfigNumber) {
      out.Add(field, " = ", value).legal =
          absl::StrCat(legal, value > kMaxConfigNumber ? absl::StrCat(", at most ", kMaxConfigNumber) : "");
    }
  };
  at_least("train_iters", t.train_iters(), 1);
  at_least("lr_warmup_iters", t.lr_warmup_iters(), 0);
  at_least("log_interval", t.log_interval(), 1);
  at_least("eval_interval", t.eval_interval(), 0);
  at_least("eval_samples", t.eval_samples(), 0);
  at_least("save_interval", t.save_interval(), 0);
  at_least("max_consecutive_skips", t.max_consecutive_skips(), 1);
  const ClusterConfig& c = config.cluster();
  const auto named = [](absl::string_view name) { return name.empty() ? "''" : std::string(name); };
  if (c.has_target() && !cost::NamedTarget(c.target()).ok()) {
    out.Add("target = ", named(c.target())).legal = absl::StrJoin(cost::TargetNames(), ", ");
  }
  const std::string device = TargetOf(config).device;
  if (t.has_device() && t.device() != "cpu" && t.device() != "cuda") {
    out.Add("device = ", named(t.device())).legal = "cpu, cuda";
  } else if (t.has_device() && t.device() != device) {
    out.Add("device = ", t.device(), " with target = ", c.has_target() ? c.target() : "cpu").legal = device;
  }
  if (t.data_path().empty()) out.Add("data_path = ''").legal = "a file, or left out: " + DefaultDataPath();
  if (t.has_run_dir() && t.run_dir().empty()) {
    out.Add("run_dir = ''").legal = "a folder, or left out: runs/<date-time>";
  }
  if (t.tf32() && device != "cuda") {
    out.Add("tf32, in which GPUs multiply, with device = ", device).legal = "--notf32, or --device=cuda";
  }
  if (t.cudnn_attention() && device != "cuda") {
    out.Add("cudnn_attention with device = ", device).legal = "--nocudnn_attention, or --device=cuda";
  }
  if (device == "cuda" && config.model().dtype() == "f64") {
    out.Add("dtype = f64 on CUDA, which has no kernels for it").legal = "f32";
  }
  const auto link = [&](absl::string_view field, bool given, double value) {
    if (given) within(field, value, value > 0, "above 0, or left out: the target's");
  };
  link("link_gbytes_per_second", c.has_link_gbytes_per_second(), c.link_gbytes_per_second());
  link("link_microseconds", c.has_link_microseconds(), c.link_microseconds());
  link("node_gbytes_per_second", c.has_node_gbytes_per_second(), c.node_gbytes_per_second());
  link("node_microseconds", c.has_node_microseconds(), c.node_microseconds());
  at_least("loss_scale_window", t.loss_scale_window(), 1);
  at_least("hysteresis", t.hysteresis(), 1);
  within("min_loss_scale", t.min_loss_scale(), t.min_loss_scale() > 0, "above 0");
  within("initial_loss_scale", t.initial_loss_scale(), t.initial_loss_scale() >= t.min_loss_scale(),
         absl::StrCat("min_loss_scale = ", t.min_loss_scale(), " or more"));
  at_least("micro_batch_interval", t.micro_batch_interval(), 0);
  const absl::StatusOr<std::vector<int64_t>> lengths = LengthsOf(config);
  if (!lengths.ok()) {
    out.Add(lengths.status().message());
  } else if (!t.length_buckets().empty() && config.model().routing_groups_per_sequence() > 1) {
    for (const int64_t length : *lengths) {
      if (length % config.model().routing_groups_per_sequence() == 0) continue;
      out.Add("length_buckets: routing_groups_per_sequence = ", config.model().routing_groups_per_sequence(),
              " does not divide ", length)
          .legal = "multiples of it";
    }
  }
  const std::string& scope = config.model().aux_loss_scope();
  if (t.adaptive_micro_batch_size() && config.model().num_experts() > 0 && scope != "sequence") {
    out.Add("adaptive_micro_batch_size with moe_aux_loss_scope = ", scope,
            ", a loss that changes with the size of a microbatch")
        .legal = "moe_aux_loss_scope = sequence";
  }
  within("held_out_fraction", t.held_out_fraction(), t.held_out_fraction() >= 0 && t.held_out_fraction() < 1,
         "at least 0, below 1");
  if (t.eval_interval() > 0 && t.held_out_fraction() == 0) {
    out.Add("eval_interval = ", t.eval_interval(),
            " with held_out_fraction = 0, which leaves nothing to evaluate")
        .legal = "eval_interval = 0, or held_out_fraction above 0";
  }
  within("lr", t.lr(), t.lr() >= 0, "0 or more");
  within("min_lr", t.min_lr(), t.min_lr() >= 0 && t.min_lr() <= t.lr(), absl::StrCat("0 to lr = ", t.lr()));
  within("weight_decay", t.weight_decay(), t.weight_decay() >= 0, "0 or more");
  within("adam_beta1", t.adam_beta1(), t.adam_beta1() >= 0 && t.adam_beta1() < 1, "at least 0, below 1");
  within("adam_beta2", t.adam_beta2(), t.adam_beta2() >= 0 && t.adam_beta2() < 1, "at least 0, below 1");
  within("adam_eps", t.adam_eps(), t.adam_eps() > 0, "above 0");
  within("clip_grad", t.clip_grad(), t.clip_grad() >= 0, "0 (no clipping) or more");
  return out.Take();
}

absl::Status ValidateRunConfig(const RunConfig& config, const Compiles& compiles) {
  std::vector<strategy::Problem> others = ModelConfigProblems(config);
  const size_t of_model = others.size();
  for (strategy::Problem& p : TrainConfigProblems(config)) others.push_back(std::move(p));
  return Refuse(config, compiles, std::move(others), of_model);
}

absl::Status ValidateStrategy(const RunConfig& config, const Compiles& compiles) {
  strategy::Report out;
  MicrobatchProblems(config, out);
  return Refuse(config, compiles, out.Take(), 0);
}

}  // namespace moe::train
