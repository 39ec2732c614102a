#include "moe/train/tuning/plan_search.h"

#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/base/textproto.h"
#include "moe/ir/state_layout.h"
#include "moe/runtime/executor.h"
#include "moe/runtime/local.h"
#include "moe/train/checkpoint/session_state.h"
#include "moe/train/data/line_data.h"
#include "moe/train/run/trainer.h"

namespace moe::train {
namespace {

constexpr char kModel[] = R"(
  name: "test" num_layers: 3 hidden_size: 24 num_attention_heads: 4 num_key_value_heads: 2 ffn_hidden_size: 32
  vocab_size: 256 seq_length: 32 num_experts: 4 moe_router_topk: 2 moe_ffn_hidden_size: 16 first_dense_layers: 1
  norm_topk_prob: true capacity_factor: 1.5 aux_loss_coeff: 0.01 aux_loss_scope: "sequence" z_loss_coeff: 0.001 init_std: 0.1
)";

RunConfig SmallConfig(const std::string& strategy, int64_t global_batch = 16) {
  RunConfig config = DefaultRunConfig();
  config.clear_model();
  EXPECT_OK(MergeTextproto(kModel, "model", *config.mutable_model()));
  config.mutable_model()->set_dtype("f64");
  TrainConfig& t = *config.mutable_train();
  t.set_train_iters(12);
  t.set_global_batch_size(global_batch);
  t.set_lr(1e-2);
  t.set_min_lr(1e-3);
  t.set_lr_warmup_iters(2);
  absl::StatusOr<strategy::Strategy> parsed = strategy::ParseStrategy(strategy);
  EXPECT_OK(parsed);
  SetStrategy(*parsed, config);
  return ResolveRunConfig(config);
}

plan::CompileOptions Options(int64_t memory_limit = 0) {
  plan::CompileOptions options;
  options.memory_limit = memory_limit;
  options.workspace = runtime::WorkspaceHook(kernels::Backend::kCpu, 0);
  return options;
}

std::unique_ptr<Dataset> Lines(std::vector<int64_t> lengths) {
  std::string text;
  for (int i = 0; i < 300; ++i) {
    absl::StrAppend(&text, "l", i % 7, std::string(i * 5 % 53, 'a' + i % 3), "\n");
  }
  auto data = LineDataset::FromText(text, {.path = "t", .seed = 5}, std::move(lengths));
  EXPECT_OK(data);
  return *std::move(data);
}

// Trains with one executor per plan, all in one memory.
struct Rig {
  std::vector<std::unique_ptr<runtime::Executor>> executors;
  std::vector<std::unique_ptr<StepMeter>> meters;
  std::unique_ptr<Trainer> trainer;
};
absl::StatusOr<Rig> Make(const RunConfig& config, const PlannedRun& run, const Dataset* data,
                         TrainerOptions hooks = {}) {
  Rig rig;
  std::vector<StepBucket> buckets;
  runtime::ExecutorOptions options;
  options.poison = true;
  for (const PlannedBucket& b : run.buckets) {
    for (const PlannedStep& p : b.plans) options.room_for.push_back(&p.compiled.plan.program);
  }
  for (const PlannedBucket& b : run.buckets) {
    StepBucket bucket;
    bucket.seq_length = b.plans[0].config.model().seq_length();
    bucket.global_batch = b.plans[0].config.train().global_batch_size();
    bucket.first_plan = b.first;
    for (const PlannedStep& p : b.plans) {
      ASSIGN_OR_RETURN(std::unique_ptr<runtime::Executor> e,
                       runtime::Executor::Create(p.compiled.plan.program, options));
      rig.executors.push_back(std::move(e));
      options.memory_of = rig.executors[0].get();
      options.room_for.clear();
      rig.meters.push_back(std::make_unique<ExecutorMeter>(rig.executors.back().get(), /*cores=*/2));
      bucket.plans.push_back({rig.executors.back().get(), StrategyOf(p.config).microbatches,
                              p.config.train().micro_batch_size(), rig.meters.back().get()});
    }
    buckets.push_back(std::move(bucket));
  }
  RETURN_IF_ERROR(rig.executors[0]->InitializeState(config.train().seed()));
  rig.trainer = std::make_unique<Trainer>(config, *run.buckets[0].plans[0].compiled.plan.program.module,
                                          std::move(buckets), data, std::move(hooks));
  return rig;
}

// One bucket per configuration, every one over the state of the first's strategy.
absl::StatusOr<PlannedRun> Fixed(const RunConfig& base, const std::vector<RunConfig>& configs) {
  PlannedRun run;
  plan::CompileOptions options = Options();
  for (const RunConfig& c : configs) options.alongside.push_back(StrategyOf(c));
  ASSIGN_OR_RETURN(std::unique_ptr<Module> module, BuildLogical(base));
  ASSIGN_OR_RETURN(const plan::Compiled first, plan::Compile(std::move(module), StrategyOf(base), options));
  ASSIGN_OR_RETURN(const StateLayout layout, StateLayoutOf(first.plan.program));
  options.layout = &layout;
  for (const RunConfig& c : configs) {
    ASSIGN_OR_RETURN(std::unique_ptr<Module> logical, BuildLogical(c));
    PlannedStep step;
    step.config = c;
    ASSIGN_OR_RETURN(step.compiled, plan::Compile(std::move(logical), StrategyOf(c), options));
    run.buckets.emplace_back().plans.push_back(std::move(step));
  }
  return run;
}

RunConfig With(RunConfig config, const std::string& strategy, int64_t length) {
  const strategy::Strategy parsed = *strategy::ParseStrategy(strategy);
  const int64_t micro = config.train().micro_batch_size();
  SetStrategy(parsed, config);
  if (parsed.microbatches == 1) config.mutable_train()->set_micro_batch_size(micro);
  return ForLength(ResolveRunConfig(config), length);
}

struct Case {
  const char* name;
  const char* base;
  std::vector<const char*> others;  // for lengths 16, 32 and 64; microbatches follow
};

class LengthBuckets : public ::testing::TestWithParam<Case> {};

// Whatever each length computes with, the losses and the weights are those of one device.
TEST_P(LengthBuckets, TrainLikeOneDevice) {
  const std::vector<int64_t> lengths = {16, 32, 64};
  const std::unique_ptr<Dataset> data = Lines(lengths);
  std::vector<std::vector<double>> losses;
  std::vector<std::vector<double>> weights;
  for (const bool one : {true, false}) {
    const RunConfig base = SmallConfig(one ? "dp=1" : GetParam().base);
    std::vector<RunConfig> configs;
    for (size_t b = 0; b < lengths.size(); ++b) {
      RunConfig c = With(base, one ? "dp=1" : GetParam().others[b], lengths[b]);
      // The same microbatches on both sides: auxiliary losses and normalisers are per sequence, but sums
      // round.
      c.mutable_train()->set_global_batch_size(16 * 32 / lengths[b]);
      c.mutable_train()->set_micro_batch_size(c.train().global_batch_size() / 2 / StrategyOf(c).dp);
      configs.push_back(c);
    }
    ASSERT_OK_AND_ASSIGN(const PlannedRun run, Fixed(base, configs));
    for (const PlannedBucket& b : run.buckets) {
      EXPECT_OK(
          CheckSameState(run.buckets[0].plans[0].compiled.plan.program, b.plans[0].compiled.plan.program));
    }
    ASSERT_OK_AND_ASSIGN(Rig rig, Make(base, run, data.get()));
    ASSERT_OK_AND_ASSIGN(const TrainResult result, rig.trainer->Train());
    losses.push_back(result.losses);
    ASSERT_OK_AND_ASSIGN(const double held_out, rig.trainer->Evaluate());
    losses.back().push_back(held_out);
    for (const char* name :
         {"layers.1.moe.w_gate", "layers.0.attn.wq", "embedding", "adam.v.layers.2.moe.router"}) {
      ASSERT_OK_AND_ASSIGN(std::vector<double> w, rig.executors[0]->ReadState(name));
      weights.push_back(std::move(w));
    }
    // Planned memory is what was used, for each plan by itself.
    for (size_t e = 0; e < rig.executors.size(); ++e) {
      const MemoryPlan& memory = rig.executors[e]->program().memory;
      const std::vector<int64_t> measured = rig.executors[e]->MeasuredPeakPerStage();
      for (size_t s = 0; s < memory.stages.size(); ++s) EXPECT_EQ(measured[s], memory.stages[s].peak_bytes());
    }
  }
  ASSERT_EQ(losses[0].size(), losses[1].size());
  for (size_t i = 0; i < losses[0].size(); ++i) EXPECT_NEAR(losses[1][i], losses[0][i], 1e-9) << "step " << i;
  for (size_t w = 0; w < 4; ++w) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < weights[w].size(); ++i) {
      error += std::pow(weights[w][i] - weights[w + 4][i], 2);
      norm += std::pow(weights[w][i], 2);
    }
    EXPECT_LT(std::sqrt(error / norm), 1e-7) << w;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Strategies, LengthBuckets,
    ::testing::Values(Case{"same", "pp=2 dp=2 ep=2", {"pp=2 dp=2 ep=2", "pp=2 dp=2 ep=2", "pp=2 dp=2 ep=2"}},
                      Case{"context_for_long", "dp=4 ep=2", {"dp=4 ep=2", "dp=4 ep=2", "dp=2 cp=2 ep=2"}},
                      Case{"fewer_tensor_ranks",
                           "tp=2 dp=2 ep=2 etp=1",
                           {"dp=4 ep=2 etp=1", "tp=2 dp=2 ep=2 etp=1", "tp=2 cp=2 ep=2 etp=1"}},
                      Case{"zero_1",
                           "tp=2 dp=4 ep=2 etp=2 zero=1",
                           {"dp=8 ep=2 etp=2 zero=1", "tp=2 dp=4 ep=2 etp=2 zero=1",
                            "tp=2 cp=2 dp=2 ep=2 etp=2 zero=1"}},
                      Case{"zero_3_and_recompute",
                           "pp=3 dp=4 ep=2 zero=3",
                           {"pp=3 dp=4 ep=2 zero=3", "pp=3 dp=4 ep=2 zero=3 checkpoint=selective",
                            "pp=3 cp=2 dp=2 ep=2 zero=3 checkpoint=full"}}),
    [](const ::testing::TestParamInfo<Case>& info) { return info.param.name; });

int64_t Peak(const RunConfig& config) {
  absl::StatusOr<PlannedRun> run = PlanRun(config, Options());
  EXPECT_OK(run);
  return run->buckets[0].plans[0].peak_bytes();
}

TEST(PlanRun, WithoutALimitTheConfigurationIsKept) {
  const RunConfig config = SmallConfig("pp=2 dp=2 ep=2 microbatches=2");
  ASSERT_OK_AND_ASSIGN(const PlannedRun run, PlanRun(config, Options()));
  ASSERT_EQ(run.buckets.size(), 1u);
  EXPECT_EQ(RunConfigToText(run.buckets[0].plans[0].config), RunConfigToText(config));
  EXPECT_TRUE(run.said.empty());
}

TEST(PlanRun, MicroBatchGoesDownWhenMemoryIsShort) {
  RunConfig config = SmallConfig("dp=2 ep=2");
  const int64_t micro = config.train().micro_batch_size();
  ASSERT_EQ(micro, 4);
  RunConfig half = config;
  half.mutable_train()->set_micro_batch_size(2);
  const int64_t limit = static_cast<int64_t>(static_cast<double>(Peak(half)) / 0.9) + 1;
  ASSERT_LT(limit * 0.9, Peak(config));
  ASSERT_OK_AND_ASSIGN(const PlannedRun run, PlanRun(config, Options(limit)));
  EXPECT_EQ(run.buckets[0].plans[0].config.train().micro_batch_size(), 2);
  EXPECT_LE(run.buckets[0].plans[0].peak_bytes(), 0.9 * limit);
  ASSERT_FALSE(run.said.empty());
  EXPECT_THAT(run.said[0], ::testing::HasSubstr("micro_batch_size 4 -> 2"));
  EXPECT_THAT(run.said[0], ::testing::HasSubstr("is over 90% of the limit"));
  EXPECT_EQ(run.said.size(), 1u) << "its loss is over sequences";
  config.mutable_model()->set_aux_loss_scope("microbatch");
  ASSERT_OK_AND_ASSIGN(const PlannedRun other, PlanRun(config, Options(limit)));
  EXPECT_THAT(other.said.back(), ::testing::HasSubstr("aux_loss_scope"));
}

// As the command line gives it: the strategy carries the limit, which `certify` holds a plan to.
TEST(PlanRun, TheLimitOfTheStrategyIsMetNotRefused) {
  for (const char* recompute : {"none", "auto"}) {
    RunConfig config = SmallConfig("dp=2 ep=2");
    SetWords(absl::StrCat("checkpoint=", recompute), config);
    RunConfig half = config;
    half.mutable_train()->set_micro_batch_size(2);
    SetWords("checkpoint=none", half);
    const int64_t limit = static_cast<int64_t>(static_cast<double>(Peak(half)) / 0.9) + 1;
    SetWords(absl::StrCat("memory_limit=", limit), config);
    ASSERT_OK_AND_ASSIGN(const PlannedRun run, PlanRun(config, Options(StrategyOf(config).memory_limit)));
    EXPECT_LE(run.buckets[0].plans[0].peak_bytes(), 0.9 * limit) << recompute;
    SetWords("memory_limit=64KiB", config);
    ExpectError(PlanRun(config, Options(StrategyOf(config).memory_limit)),
                absl::StatusCode::kResourceExhausted, "no plan for sequences of 32 tokens");
  }
}

TEST(PlanRun, ThenTheSequenceIfAllowed) {
  RunConfig config = SmallConfig("dp=2 ep=2");
  RunConfig shorter = config;
  shorter.mutable_train()->set_micro_batch_size(1);
  const int64_t least = Peak(shorter);
  shorter.mutable_model()->set_seq_length(16);
  shorter.mutable_train()->set_global_batch_size(32);
  const int64_t limit = static_cast<int64_t>(static_cast<double>(Peak(shorter)) / 0.9) + 1;
  ASSERT_LT(limit * 0.9, least);
  ExpectError(PlanRun(config, Options(limit)), absl::StatusCode::kResourceExhausted, "sequences of 32 tokens",
              "the smallest that was found takes", "--allow_shorter_sequences");
  config.mutable_train()->set_allow_shorter_sequences(true);
  ASSERT_OK_AND_ASSIGN(const PlannedRun run, PlanRun(config, Options(limit)));
  EXPECT_EQ(run.buckets[0].plans[0].config.model().seq_length(), 16);
  EXPECT_EQ(run.buckets[0].plans[0].config.train().global_batch_size(), 32);
  EXPECT_THAT(absl::StrJoin(run.said, "\n"), ::testing::HasSubstr("seq_length 32 -> 16"));
}

TEST(PlanRun, EachLengthGetsTheCheapestPlanThatFits) {
  RunConfig config = SmallConfig("dp=2 tp=2 ep=2 etp=2 checkpoint=none", 32);
  config.mutable_train()->set_length_buckets("16,32,128");
  ASSERT_OK_AND_ASSIGN(const PlannedRun free, PlanRun(config, Options()));
  ASSERT_EQ(free.buckets.size(), 3u);
  int64_t most = 0;
  for (const PlannedBucket& b : free.buckets) {
    EXPECT_GT(b.tried, 1);
    EXPECT_EQ(b.plans[0].config.model().seq_length() * b.plans[0].config.train().global_batch_size(),
              32 * 32);
    most = std::max(most, b.plans[0].peak_bytes());
  }
  // Under a limit below what the fullest took, all fit, and none got faster by it.
  const int64_t limit = static_cast<int64_t>(0.97 * static_cast<double>(most) / 0.9);
  ASSERT_OK_AND_ASSIGN(const PlannedRun limited, PlanRun(config, Options(limit)));
  bool changed = false;
  for (size_t b = 0; b < 3; ++b) {
    EXPECT_LE(limited.buckets[b].plans[0].peak_bytes(), 0.9 * limit);
    EXPECT_GE(limited.buckets[b].plans[0].predicted_seconds,
              free.buckets[b].plans[0].predicted_seconds * (1 - 1e-9));
    changed |= RunConfigToText(limited.buckets[b].plans[0].config) !=
               RunConfigToText(free.buckets[b].plans[0].config);
  }
  EXPECT_TRUE(changed);
}

TEST(PlanRun, AdaptiveSizesShareOneStateAndGiveTheSameLosses) {
  RunConfig config = SmallConfig("pp=2 dp=2 ep=2 microbatches=4");
  config.mutable_train()->set_train_iters(21);
  config.mutable_train()->set_length_buckets("32");
  const std::unique_ptr<Dataset> data = Lines({32});
  ASSERT_OK_AND_ASSIGN(const PlannedRun plain, PlanRun(config, Options()));
  config.mutable_train()->set_adaptive_micro_batch_size(true);
  ASSERT_OK_AND_ASSIGN(const PlannedRun adaptive, PlanRun(config, Options()));
  ASSERT_EQ(plain.buckets[0].plans.size(), 1u);
  ASSERT_GE(adaptive.buckets[0].plans.size(), 3u);
  ASSERT_OK_AND_ASSIGN(Rig a, Make(config, plain, data.get()));
  std::string said;
  TrainerOptions hooks;
  hooks.tuned = [&](int, const MicroBatchTuner& tuner) {
    said = tuner.Describe();
    // Every plan has a prediction from what the stages of two were found to take.
    for (size_t p = 0; p < adaptive.buckets[0].plans.size(); ++p) {
      const StepPrediction predicted = tuner.Predicted(static_cast<int>(p));
      EXPECT_GT(predicted.seconds, 0) << p;
      EXPECT_GE(predicted.bubble, 0) << p;
      EXPECT_LT(predicted.bubble, 1) << p;
    }
  };
  ASSERT_OK_AND_ASSIGN(Rig b, Make(config, adaptive, data.get(), hooks));
  ASSERT_OK_AND_ASSIGN(const TrainResult x, a.trainer->Train());
  ASSERT_OK_AND_ASSIGN(const TrainResult y, b.trainer->Train());
  for (size_t i = 0; i < x.losses.size(); ++i) EXPECT_NEAR(x.losses[i], y.losses[i], 1e-9);
  EXPECT_THAT(said, ::testing::HasSubstr("kept"));
  EXPECT_THAT(said, ::testing::ContainsRegex("stage 1: compute .* m ms, exchanges .* m ms"));
}

TEST(PlanRun, RefusesLengthsThatNoStrategyTakes) {
  RunConfig config = SmallConfig("cp=4 dp=1");
  config.mutable_train()->set_length_buckets("30,32");
  SetWords("sp", config);
  config.mutable_train()->set_length_buckets("32,16");
  ExpectError(LengthsOf(config), absl::StatusCode::kInvalidArgument, "must be ascending");
}

}  // namespace
}  // namespace moe::train
