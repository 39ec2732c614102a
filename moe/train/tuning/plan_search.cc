#include "moe/train/tuning/plan_search.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/quantities.h"
#include "moe/base/status.h"
#include "moe/cost/play_actions.h"
#include "moe/ir/runnable.h"
#include "moe/ir/state_layout.h"
#include "moe/model/config.h"
#include "moe/model/transformer.h"
#include "moe/passes/pipeline.h"
#include "moe/strategy/fold.h"
#include "moe/train/config/validate.h"
#include "moe/train/run/trainer.h"

namespace moe::train {
namespace {

// Without where things lie on this host: the plans of all processes are the same, and stay so when a run is moved.
RunConfig WithoutPlaces(RunConfig config) {
  config.mutable_train()->clear_data_path();
  config.mutable_train()->clear_run_dir();
  config.mutable_train()->clear_resume();
  return config;
}

constexpr double kShareOfLimit = 0.9;

int64_t DataRanks(const RunConfig& c) { return StrategyOf(c).dp; }

bool ChoosesByBudget(const RunConfig& c) {
  return StrategyOf(c).checkpoint.Is(strategy::CheckpointMode::kAuto);
}

// Microbatch sizes below `size` that divide what a data rank has, largest first.
std::vector<int64_t> SmallerMicroBatches(const RunConfig& c, int64_t size) {
  std::vector<int64_t> out;
  const int64_t samples = c.train().global_batch_size() / std::max<int64_t>(1, DataRanks(c));
  for (int64_t m = std::min(size - 1, samples); m >= 1; --m) {
    if (samples % m == 0) out.push_back(m);
  }
  return out;
}

// The size nearest to `wanted` from below that divides what a data rank has.
int64_t MicroBatchNear(const RunConfig& c, int64_t wanted) {
  const std::vector<int64_t> sizes = SmallerMicroBatches(c, std::max<int64_t>(1, wanted) + 1);
  return sizes.empty() ? 1 : sizes[0];
}

// The parts of a strategy that plans over one state can differ in.
std::string Layout(const RunConfig& c) {
  const strategy::Strategy s = StrategyOf(c);
  return absl::StrCat("tp ", s.tp, ", cp ", s.cp, ", dp ", s.dp);
}

class Search {
 public:
  Search(const RunConfig& config, const plan::CompileOptions& options) : config_(config), options_(options) {
    limit_ = options.memory_limit;
    // The search says what does not fit; `certify` would only say that it does not.
    options_.memory_limit = 0;
    options_.passes.dump_to = "";
    options_.passes.validate = nullptr;
  }

  bool limited() const { return limit_ > 0; }
  bool Fits(const PlannedStep& step) const {
    return !limited() ||
           static_cast<double>(step.peak_bytes()) <= kShareOfLimit * static_cast<double>(limit_);
  }
  std::string OverLimit(const PlannedStep& step) const {
    return absl::StrFormat("%s per rank is over %.0f%% of the limit, %s", BytesText(step.peak_bytes()),
                           100 * kShareOfLimit, BytesText(limit_));
  }
  int64_t least() const { return least_; }
  void Share(const StateLayout* layout, std::vector<strategy::Strategy> alongside) {
    options_.layout = layout;
    options_.alongside = std::move(alongside);
  }

  absl::StatusOr<PlannedStep> Try(const RunConfig& config) {
    ++tried_;
    ASSIGN_OR_RETURN(PlannedStep step, Plan(config, Aimed(config), options_));
    least_ = std::min(least_, step.peak_bytes());
    return step;
  }
  // The same plan, for keeps: with the run's own options.
  absl::StatusOr<PlannedStep> Keep(const RunConfig& config, plan::CompileOptions options) {
    options.layout = options_.layout;
    options.alongside = options_.alongside;
    const strategy::Strategy strategy = Aimed(config);
    if (strategy.memory_limit > 0) options.memory_limit = strategy.memory_limit;
    return Plan(config, strategy, options);
  }
  int TakeTried() { return std::exchange(tried_, 0); }

 private:
  // The limit is the search's to hold: what is over it is measured, not refused. A choice of what to
  // recompute aims at the share that a plan may take.
  strategy::Strategy Aimed(const RunConfig& config) const {
    strategy::Strategy strategy = StrategyOf(config);
    strategy.memory_limit =
        ChoosesByBudget(config) ? static_cast<int64_t>(kShareOfLimit * static_cast<double>(limit_)) : 0;
    return strategy;
  }

  static absl::StatusOr<PlannedStep> Plan(const RunConfig& config, const strategy::Strategy& strategy,
                                          const plan::CompileOptions& options) {
    PlannedStep step;
    step.config = config;
    ASSIGN_OR_RETURN(std::unique_ptr<Module> module, BuildLogical(config));
    plan::CompileOptions mine = options;
    mine.model_text = model::ModelConfigToText(config.model());
    mine.train_text = RunConfigToText(WithoutPlaces(config));
    ASSIGN_OR_RETURN(step.compiled, plan::Compile(std::move(module), strategy, mine));
    const Program& program = step.compiled.plan.program;
    RETURN_IF_ERROR(CheckTrainable(program));
    const cost::StepTimeline t = cost::PlayActions(program, cost::CostDurations(program, options.target));
    step.predicted_seconds = t.end - t.begin;
    return step;
  }

  const RunConfig& config_;
  plan::CompileOptions options_;
  int64_t limit_ = 0;
  int64_t least_ = std::numeric_limits<int64_t>::max();
  int tried_ = 0;
};

absl::Status NothingFits(const Search& search, const RunConfig& config, int64_t limit) {
  return absl::ResourceExhaustedError(absl::StrCat(
      "no plan for sequences of ", config.model().seq_length(), " tokens takes at most ",
      absl::StrFormat("%.0f%%", 100 * kShareOfLimit), " of the memory limit of ", BytesText(limit),
      " per rank; the smallest that was found takes ",
      search.least() == std::numeric_limits<int64_t>::max() ? "more" : BytesText(search.least()),
      ". More ranks, recompute_granularity=full, a zero_stage above ", StrategyOf(config).zero,
      config.train().allow_shorter_sequences() ? "" : ", or --allow_shorter_sequences", " would take less"));
}

// One length: as configured, or the nearest below it that fits.
absl::StatusOr<PlannedBucket> PlanOne(Search& search, RunConfig config, int64_t limit,
                                      std::vector<std::string>* said) {
  for (;;) {
    std::vector<int64_t> sizes = {config.train().micro_batch_size()};
    if (search.limited()) {
      const std::vector<int64_t> smaller = SmallerMicroBatches(config, sizes[0]);
      sizes.insert(sizes.end(), smaller.begin(), smaller.end());
    }
    std::string why;
    for (const int64_t size : sizes) {
      RunConfig trial = config;
      trial.mutable_train()->set_micro_batch_size(size);
      if (size != sizes[0] && !StrategyProblems(trial).empty()) continue;
      absl::StatusOr<PlannedStep> step = search.Try(trial);
      if (!step.ok()) {
        // Recomputation by budget refuses what no recomputation makes fit.
        if (!search.limited() || !ChoosesByBudget(trial)) return step.status();
        if (why.empty()) why = std::string(step.status().message());
        continue;
      }
      if (!search.Fits(*step)) {
        if (why.empty()) why = search.OverLimit(*step);
        continue;
      }
      if (size != sizes[0]) {
        said->push_back(absl::StrCat("micro_batch_size ", sizes[0], " -> ", size, ": ", why, "; now ",
                                     BytesText(step->peak_bytes())));
      }
      PlannedBucket bucket;
      bucket.plans.push_back(*std::move(step));
      return bucket;
    }
    const int64_t length = config.model().seq_length();
    if (!config.train().allow_shorter_sequences() || length % 2 != 0 || length <= 2) {
      return NothingFits(search, config, limit);
    }
    RunConfig shorter = config;
    shorter.mutable_model()->set_seq_length(length / 2);
    shorter.mutable_train()->set_global_batch_size(config.train().global_batch_size() * 2);
    shorter.mutable_train()->set_micro_batch_size(
        MicroBatchNear(shorter, config.train().micro_batch_size() * 2));
    if (!ValidateRunConfig(shorter).ok()) return NothingFits(search, config, limit);
    said->push_back(absl::StrCat(
        "seq_length ", length, " -> ", length / 2, ", global_batch_size ", config.train().global_batch_size(),
        " -> ", shorter.train().global_batch_size(), ": no micro_batch_size fits (", why, ")"));
    config = std::move(shorter);
  }
}

// Strategies that a length may use: ranks moved between tensor, context and data parallelism.
std::vector<RunConfig> Layouts(const RunConfig& base) {
  std::vector<RunConfig> out;
  const strategy::Strategy configured = StrategyOf(base);
  const int64_t ranks = configured.stage_ranks();
  for (int64_t tp = configured.tp; tp >= 1; --tp) {
    if (configured.tp % tp != 0) continue;
    for (int64_t cp = 1; cp <= ranks / tp; ++cp) {
      if (ranks % (tp * cp) != 0) continue;
      strategy::Strategy s = configured;
      s.tp = tp, s.cp = cp, s.dp = ranks / (tp * cp);
      s.microbatches = 1;  // micro_batch_size says how many
      SetStrategy(s, out.emplace_back(base));
    }
  }
  return out;
}

// Whether the loss is another one with microbatches of another size.
bool DependsOnMicroBatch(const RunConfig& config) {
  return config.model().aux_loss_coeff() != 0 && config.model().aux_loss_scope() == "microbatch";
}

bool ChangesMicroBatch(const PlannedRun& run, int64_t size) {
  for (const PlannedBucket& bucket : run.buckets) {
    for (const PlannedStep& step : bucket.plans) {
      if (step.config.train().micro_batch_size() != size) return true;
    }
  }
  return false;
}

}  // namespace

int64_t PlannedStep::peak_bytes() const {
  int64_t most = 0;
  for (const StageMemory& stage : compiled.plan.program.memory.stages)
    most = std::max(most, stage.peak_bytes());
  return most;
}

absl::StatusOr<std::unique_ptr<Module>> BuildLogical(const RunConfig& config) {
  const TrainConfig& train = config.train();
  model::BuildOptions build;
  build.global_batch = train.global_batch_size();
  build.microbatches = StrategyOf(config).microbatches;
  build.seed = static_cast<int64_t>(train.seed());
  build.beta1 = train.adam_beta1();
  build.beta2 = train.adam_beta2();
  build.eps = train.adam_eps();
  build.weight_decay = train.weight_decay();
  build.clip_grad = train.clip_grad();
  return model::BuildModel(config.model(), build);
}

bool CompilesInFact(const RunConfig& config) {
  RunConfig trial = config;
  // Whether it fits a budget is not asked here: smaller microbatches may.
  if (ChoosesByBudget(config)) SetWords("checkpoint=none", trial);
  plan::CompileOptions options;
  options.target = TargetOf(config);
  return Search(trial, options).Try(trial).ok();
}

RunConfig ForLength(const RunConfig& config, int64_t length) {
  RunConfig out = config;
  const double ratio = static_cast<double>(config.model().seq_length()) / static_cast<double>(length);
  const int64_t dp = std::max<int64_t>(1, DataRanks(config));
  const auto samples = [&](int64_t n) {
    return std::max(dp, static_cast<int64_t>(static_cast<double>(n) * ratio + 1e-9) / dp * dp);
  };
  out.mutable_model()->set_seq_length(length);
  if (length == config.model().seq_length()) return out;
  out.mutable_train()->set_global_batch_size(samples(config.train().global_batch_size()));
  out.mutable_train()->set_micro_batch_size(MicroBatchNear(
      out, static_cast<int64_t>(static_cast<double>(config.train().micro_batch_size()) * ratio + 1e-9)));
  return out;
}

absl::StatusOr<PlannedRun> PlanRun(
    const RunConfig& config, const plan::CompileOptions& options,
    const std::function<void(const RunConfig& config, plan::CompileOptions* options)>& chosen) {
  PlannedRun run;
  ASSIGN_OR_RETURN(const std::vector<int64_t> lengths, LengthsOf(config));
  const int64_t limit = options.memory_limit;
  Search search(config, options);
  std::vector<PlannedBucket> found;
  StateLayout layout;
  const bool adaptive = config.train().adaptive_micro_batch_size();

  if (config.train().length_buckets().empty() && !adaptive) {
    if (limit > 0) {
      ASSIGN_OR_RETURN(PlannedBucket bucket, PlanOne(search, config, limit, &run.said));
      found.push_back(std::move(bucket));
    } else {  // as configured: nothing to find out
      found.emplace_back().plans.emplace_back().config = config;
    }
  } else {
    // Every strategy that some length may use; they must fold together over one mesh.
    const int64_t kv_heads = config.model().num_key_value_heads();
    std::vector<strategy::Strategy> alongside = {StrategyOf(config)};
    std::vector<std::vector<RunConfig>> candidates;
    std::set<std::string> layouts = {Layout(config)};
    for (const int64_t length : lengths) {
      std::vector<RunConfig>& mine = candidates.emplace_back();
      RunConfig base = config;
      base.mutable_model()->set_seq_length(config.model().seq_length());
      for (const RunConfig& c :
           config.train().length_buckets().empty() ? std::vector<RunConfig>{config} : Layouts(base)) {
        RunConfig trial = ForLength(c, length);
        if (!StrategyProblems(trial).empty()) continue;
        if (layouts.insert(Layout(trial)).second) {
          if (!strategy::FoldMesh(StrategyOf(trial), kv_heads, alongside).ok()) {
            layouts.erase(Layout(trial));
            continue;
          }
          alongside.push_back(StrategyOf(trial));
        }
        mine.push_back(std::move(trial));
      }
      if (mine.empty()) {
        const absl::Status why = ValidateRunConfig(ForLength(config, length));
        return Annotate(why.ok() ? absl::InvalidArgumentError("no strategy fits") : why,
                        absl::StrCat("length bucket ", length));
      }
    }
    search.Share(nullptr, alongside);
    ASSIGN_OR_RETURN(const PlannedStep base, search.Try(config));
    ASSIGN_OR_RETURN(layout, StateLayoutOf(base.compiled.plan.program));
    search.Share(&layout, alongside);
    search.TakeTried();
    for (size_t b = 0; b < lengths.size(); ++b) {
      PlannedBucket bucket;
      std::vector<PlannedStep> fitting;
      for (const RunConfig& c : candidates[b]) {
        std::vector<int64_t> sizes = {c.train().micro_batch_size()};
        for (int64_t m : SmallerMicroBatches(c, sizes[0])) {
          if (sizes.size() < 3) sizes.push_back(m);
        }
        if (adaptive) {  // and larger ones
          for (int64_t m = 2 * sizes[0]; m <= 4 * sizes[0]; m *= 2) {
            if (MicroBatchNear(c, m) == m) sizes.push_back(m);
          }
        }
        for (const int64_t size : sizes) {
          for (const bool full : {false, true}) {
            RunConfig trial = c;
            trial.mutable_train()->set_micro_batch_size(size);
            if (full) SetWords("checkpoint=full", trial);
            if (!StrategyProblems(trial).empty()) break;
            absl::StatusOr<PlannedStep> step = search.Try(trial);
            if (!step.ok() && !ChoosesByBudget(trial)) return step.status();
            if (step.ok() && search.Fits(*step)) {
              fitting.push_back(*std::move(step));
              break;
            }
            if (StrategyOf(trial).checkpoint.Is(strategy::CheckpointMode::kFull)) break;
          }
        }
      }
      bucket.tried = search.TakeTried();
      if (fitting.empty()) {
        if (!config.train().allow_shorter_sequences() || b == 0) {
          return NothingFits(search, ForLength(config, lengths[b]), limit);
        }
        // Longer samples are cut to the lengths that do fit.
        run.said.push_back(absl::StrCat("length ", lengths[b], " and above are cut to ", lengths[b - 1],
                                        ": no plan takes at most ", kShareOfLimit * 100,
                                        "% of the memory limit of ", BytesText(limit)));
        break;
      }
      size_t best = 0;
      for (size_t i = 1; i < fitting.size(); ++i) {
        if (fitting[i].predicted_seconds < fitting[best].predicted_seconds * (1 - 1e-9)) best = i;
      }
      const PlannedStep& p = fitting[best];
      const strategy::Strategy s = StrategyOf(p.config);
      run.said.push_back(absl::StrFormat(
          "length %d: %s, %d %s of %d samples, recompute %s; %s per rank, %.3g s by the cost model, of %d "
          "plans",
          lengths[b], Layout(p.config), s.microbatches, s.microbatches == 1 ? "microbatch" : "microbatches",
          p.config.train().micro_batch_size() * s.dp, s.checkpoint.ToString(), BytesText(p.peak_bytes()),
          p.predicted_seconds, bucket.tried));
      const std::string layout_of_best = Layout(p.config);
      if (adaptive) {
        for (size_t i = 0; i < fitting.size(); ++i) {
          if (Layout(fitting[i].config) != layout_of_best) continue;
          if (i == best) bucket.first = static_cast<int>(bucket.plans.size());
          bucket.plans.emplace_back().config = fitting[i].config;
        }
      } else {
        bucket.plans.emplace_back().config = p.config;
      }
      found.push_back(std::move(bucket));
    }
  }
  for (PlannedBucket& bucket : found) {
    for (PlannedStep& step : bucket.plans) {
      plan::CompileOptions mine = options;
      if (chosen) chosen(step.config, &mine);
      const RunConfig kept = step.config;
      ASSIGN_OR_RETURN(step, search.Keep(kept, mine));
    }
    const RunConfig& first = bucket.plans[0].config;
    bucket.flops_per_step =
        model::ModelFlopsPerToken(first.model()) *
        static_cast<double>(first.model().seq_length() * first.train().global_batch_size());
    run.buckets.push_back(std::move(bucket));
  }
  if (DependsOnMicroBatch(config) && ChangesMicroBatch(run, config.train().micro_batch_size())) {
    run.said.push_back(
        "the load-balancing loss is over the microbatch (aux_loss_scope), so it changes with "
        "micro_batch_size; "
        "with the scopes sequence and global_batch it would not");
  }
  return run;
}

}  // namespace moe::train
