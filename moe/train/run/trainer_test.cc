#include "moe/train/run/trainer.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/base/textproto.h"
#include "moe/model/transformer.h"
#include "moe/plan/compile.h"
#include "moe/runtime/executor.h"
#include "moe/runtime/local.h"
#include "moe/train/checkpoint/session_state.h"
#include "moe/train/run/generator.h"

namespace moe::train {
namespace {

constexpr char kModel[] = R"(
  name: "test" num_layers: 2 hidden_size: 32 num_attention_heads: 4 num_key_value_heads: 2 ffn_hidden_size: 64
  vocab_size: 256 seq_length: 16 num_experts: 4 moe_router_topk: 2 moe_ffn_hidden_size: 32 first_dense_layers: 1
  norm_topk_prob: true capacity_factor: 1.5 aux_loss_coeff: 0.01 z_loss_coeff: 0.001 init_std: 0.1
)";

// A compiled configuration with its text and session: what one run owns.
struct Rig {
  RunConfig config;
  std::unique_ptr<TextDataset> data;
  std::unique_ptr<plan::Compiled> compiled;
  std::unique_ptr<runtime::Executor> session;
  std::unique_ptr<Trainer> trainer;
};

std::string Folder(const std::string& name) {
  const std::string dir = JoinPath(::testing::TempDir(), name);
  EXPECT_OK(RemoveTree(dir));
  return dir;
}

RunConfig SmallConfig(const std::string& strategy, const std::string& dtype = "f32") {
  RunConfig config;
  EXPECT_OK(MergeTextproto(kModel, "model", *config.mutable_model()));
  config.mutable_model()->set_dtype(dtype);
  *config.mutable_train() = DefaultRunConfig().train();
  TrainConfig& t = *config.mutable_train();
  t.set_train_iters(12);
  t.set_global_batch_size(8);
  t.set_lr(1e-2);
  t.set_min_lr(1e-3);
  t.set_lr_warmup_iters(2);
  t.set_log_interval(1);
  t.set_max_consecutive_skips(3);
  absl::StatusOr<strategy::Strategy> parsed = strategy::ParseStrategy(strategy);
  EXPECT_OK(parsed);
  SetStrategy(*parsed, config);
  return ResolveRunConfig(config);
}

absl::StatusOr<Rig> Make(const RunConfig& config, TrainerOptions options = {}) {
  Rig s;
  s.config = config;
  std::string text;
  for (int i = 0; i < 400; ++i) absl::StrAppend(&text, "line ", i % 7, " of the text that repeats\n");
  ASSIGN_OR_RETURN(s.data, TextDataset::FromText(text, {.path = "t", .seq_length = 16, .seed = 5}));
  const strategy::Strategy strategy = StrategyOf(config);
  ASSIGN_OR_RETURN(auto module,
                   model::BuildModel(config.model(), {.global_batch = config.train().global_batch_size(),
                                                      .microbatches = strategy.microbatches}));
  plan::CompileOptions compile;
  compile.workspace = runtime::WorkspaceHook(kernels::Backend::kCpu, strategy.overload);
  ASSIGN_OR_RETURN(plan::Compiled compiled, plan::Compile(std::move(module), strategy, compile));
  s.compiled = std::make_unique<plan::Compiled>(std::move(compiled));
  ASSIGN_OR_RETURN(s.session, runtime::Executor::Create(s.compiled->plan.program, {}));
  RETURN_IF_ERROR(s.session->InitializeState(config.train().seed()));
  s.trainer = std::make_unique<Trainer>(config, *s.compiled->plan.program.module, s.session.get(),
                                        s.data.get(), std::move(options));
  return s;
}

constexpr char kAll[] = "pp=2 dp=2 tp=2 ep=2 etp=2 microbatches=2 checkpoint=selective";

TEST(TrainerTest, LossFallsAndTwoRunsAreBitwiseTheSame) {
  ASSERT_OK_AND_ASSIGN(Rig a, Make(SmallConfig(kAll)));
  ASSERT_OK_AND_ASSIGN(const TrainResult first, a.trainer->Train());
  ASSERT_EQ(first.losses.size(), 12u);
  EXPECT_NEAR(first.losses[0], std::log(256), 1.0);
  EXPECT_LT(first.losses.back(), first.losses[0] - 1);
  EXPECT_EQ(first.last_step, 12);
  EXPECT_GT(first.tokens_per_second, 0);
  ASSERT_OK_AND_ASSIGN(Rig b, Make(SmallConfig(kAll)));
  ASSERT_OK_AND_ASSIGN(const TrainResult second, b.trainer->Train());
  EXPECT_EQ(first.losses, second.losses);
  ASSERT_OK_AND_ASSIGN(const double x, a.trainer->Evaluate());
  ASSERT_OK_AND_ASSIGN(const double y, b.trainer->Evaluate());
  EXPECT_EQ(x, y);
  EXPECT_LT(x, first.losses[0]);
}

TEST(TrainerTest, MfuIsTheShareOfThePeakOfADevice) {
  RunConfig config = SmallConfig("dp=1");
  config.mutable_train()->set_train_iters(2);
  ASSERT_OK_AND_ASSIGN(const Rig rig, Make(config));
  StepMetrics shown;
  TrainerOptions options;
  options.devices = 2;
  options.peak_flops = 1e9;
  options.progress = [&](const StepMetrics& m) { shown = m; };
  const StepBucket bucket = {
      .seq_length = 16,
      .global_batch = 8,
      .flops_per_step = 6e9,
      .plans = {{rig.session.get(), StrategyOf(config).microbatches, config.train().micro_batch_size()}}};
  Trainer trainer(config, *rig.compiled->plan.program.module, {bucket}, rig.data.get(), options);
  ASSERT_OK(trainer.Train().status());
  EXPECT_NEAR(shown.mfu * shown.milliseconds, 3e3,
              1e-6);  // 6e9 on two devices take three seconds at their peak
}

// f16 with a scale far too high: the first steps overflow and change nothing, the scale falls until they do
// not, and where it stands survives a checkpoint.
TEST(TrainerTest, LossScaleFallsUntilStepsAreFinite) {
  RunConfig config = SmallConfig("dp=2 ep=2 f16");
  config.mutable_train()->set_initial_loss_scale(std::ldexp(1.0, 36));
  config.mutable_train()->set_hysteresis(1);
  config.mutable_train()->set_train_iters(40);  // and stops at 3 skips in a row that lower no scale
  const std::string dir = Folder("loss_scale");
  ASSERT_OK(MakeFolders(dir));
  TrainerOptions options;
  options.run_dir = dir;
  std::vector<double> scales, rates;
  std::vector<int64_t> skipped;
  options.progress = [&](const StepMetrics& m) {
    scales.push_back(m.loss_scale);
    skipped.push_back(m.skipped_iterations);
    rates.push_back(m.learning_rate);
  };
  ASSERT_OK_AND_ASSIGN(Rig s, Make(config, options));
  ASSERT_OK_AND_ASSIGN(const TrainResult result, s.trainer->Train());
  EXPECT_EQ(scales[0], std::ldexp(1.0, 36));
  EXPECT_LT(skipped.back(), 35);
  // The warm-up waits for the first step that is taken.
  size_t taken = 1;
  while (skipped[taken] > skipped[taken - 1]) ++taken;
  EXPECT_GT(taken, 3u);
  EXPECT_EQ(rates[taken], rates[0]);
  EXPECT_GT(rates[taken + 1], rates[0]);
  EXPECT_EQ(scales.back(), std::ldexp(scales[0], -static_cast<int>(skipped.back())));
  EXPECT_LT(result.losses.back(), result.losses[0] - 0.5);
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(result.checkpoint));
  EXPECT_EQ(checkpoint->meta().loss_scale.value, scales.back());
  for (const TensorSpec& t : checkpoint->tensors()) EXPECT_EQ(t.dtype, DType::kF32) << t.name;  // the masters
  ASSERT_OK_AND_ASSIGN(Rig resumed, Make(config));
  ASSERT_OK(resumed.trainer->Resume(dir));
  EXPECT_EQ(resumed.trainer->meta().loss_scale, s.trainer->meta().loss_scale);
}

TEST(TrainerTest, EvaluationCountsEachHeldOutTokenOnceAndChangesNothing) {
  ASSERT_OK_AND_ASSIGN(Rig s, Make(SmallConfig("dp=2")));
  ASSERT_OK_AND_ASSIGN(const double all, s.trainer->Evaluate());
  ASSERT_OK_AND_ASSIGN(const double again, s.trainer->Evaluate());
  EXPECT_EQ(all, again);
  EXPECT_NEAR(all, std::log(256), 1.0);
  // Three samples are one batch with five rows of padding.
  ASSERT_OK_AND_ASSIGN(const double three, s.trainer->Evaluate(3));
  EXPECT_TRUE(std::isfinite(three));
  EXPECT_NE(three, all);
}

TEST(TrainerTest, StoppedAndResumedIsBitwiseUninterrupted) {
  ASSERT_OK_AND_ASSIGN(Rig whole, Make(SmallConfig(kAll)));
  ASSERT_OK_AND_ASSIGN(const TrainResult want, whole.trainer->Train());
  const std::string dir = Folder("resume");
  ASSERT_OK(MakeFolders(dir));
  std::atomic<bool> stop{false};
  TrainerOptions options;
  options.run_dir = dir;
  options.stop = &stop;
  options.after_step = [&](int64_t step) { stop = step == 5; };
  ASSERT_OK_AND_ASSIGN(Rig before, Make(SmallConfig(kAll), options));
  ASSERT_OK_AND_ASSIGN(const TrainResult head, before.trainer->Train());
  EXPECT_TRUE(head.interrupted);
  EXPECT_EQ(head.last_step, 5);
  EXPECT_EQ(head.checkpoint, JoinPath(dir, "checkpoint/step_00000005"));
  options.stop = nullptr;
  options.after_step = nullptr;
  ASSERT_OK_AND_ASSIGN(Rig after, Make(SmallConfig(kAll), options));
  ASSERT_OK(after.trainer->Resume(dir));
  ASSERT_OK_AND_ASSIGN(const TrainResult tail, after.trainer->Train());
  std::vector<double> losses = head.losses;
  losses.insert(losses.end(), tail.losses.begin(), tail.losses.end());
  EXPECT_EQ(losses, want.losses);
  for (const TensorSpec& t : PersistentTensors(*after.compiled->plan.program.module)) {
    ASSERT_OK_AND_ASSIGN(const auto x, after.session->ReadState(t.name));
    ASSERT_OK_AND_ASSIGN(const auto y, whole.session->ReadState(t.name));
    EXPECT_EQ(x, y) << t.name;
  }
  // One line a step, none twice.
  ASSERT_OK_AND_ASSIGN(const std::string metrics, ReadFile(JoinPath(dir, "metrics.jsonl")));
  EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 12);
}

// Trains five steps under one strategy and two more under another, or the same one.
std::vector<double> LossesAfterMove(const std::string& dtype, const std::string& from, const std::string& to,
                                    int64_t vocab = 256) {
  const auto configured = [&](const std::string& strategy) {
    RunConfig config = SmallConfig(strategy, dtype);
    config.mutable_model()->set_vocab_size(vocab);
    config.mutable_model()->clear_vocab_blocks();  // follow from the vocabulary
    return config;
  };
  const std::string dir = Folder("move");
  EXPECT_OK(MakeFolders(dir));
  TrainerOptions options;
  options.run_dir = dir;
  std::atomic<bool> stop{false};
  options.stop = &stop;
  options.after_step = [&](int64_t step) { stop = step == 5; };
  auto a = Make(configured(from), options);
  EXPECT_OK(a);
  if (!a.ok()) return {};
  EXPECT_OK(a->trainer->Train());
  auto b = Make(configured(to));
  EXPECT_OK(b);
  if (!b.ok()) return {};
  EXPECT_OK(b->trainer->Resume(dir));
  auto result = b->trainer->Train();
  EXPECT_OK(result);
  return result.ok() ? result->losses : std::vector<double>{};
}

TEST(TrainerTest, ACheckpointResumesUnderAnotherPlan) {
  constexpr char kFrom[] = "dp=2 ep=2 microbatches=2", kTo[] = "pp=2 tp=2 microbatches=2 zero=1";
  for (const auto& [dtype, bound] : {std::pair<std::string, double>{"f64", 1e-9}, {"f32", 1e-5}}) {
    const std::vector<double> same = LossesAfterMove(dtype, kFrom, kFrom);
    const std::vector<double> moved = LossesAfterMove(dtype, kFrom, kTo);
    ASSERT_EQ(same.size(), 7u);
    ASSERT_EQ(moved.size(), 7u);
    // The first steps: later ones of f32 drift apart by rounding that routing amplifies.
    for (size_t i = 0; i < (dtype == "f64" ? 7u : 2u); ++i)
      EXPECT_NEAR(moved[i], same[i], bound * same[i]) << dtype;
  }
}

// Checkpoints hold experts and words: neither slots nor padding.
TEST(TrainerTest, ACheckpointResumesUnderAnotherMapOfExperts) {
  constexpr char kPlain[] = "dp=2 ep=2 microbatches=2",
                 kSpread[] = "dp=4 ep=4 microbatches=2 expert_map=3:2:1:0:0:-1:0:3 zero=1",
                 kEmpty[] = "dp=2 tp=2 ep=2 microbatches=2 expert_slots=6";
  const std::vector<double> plain = LossesAfterMove("f64", kPlain, kPlain);
  ASSERT_EQ(plain.size(), 7u);
  for (const auto& [from, to] : {std::pair(kPlain, kSpread), {kSpread, kEmpty}, {kSpread, kPlain}}) {
    SCOPED_TRACE(absl::StrCat(from, " -> ", to));
    const std::vector<double> moved = LossesAfterMove("f64", from, to);
    ASSERT_EQ(moved.size(), 7u);
    for (size_t i = 0; i < moved.size(); ++i) EXPECT_NEAR(moved[i], plain[i], 1e-9 * plain[i]);
  }
}

TEST(TrainerTest, ACheckpointOfAPaddedVocabularyResumesWithoutPadding) {
  constexpr char kPlain[] = "dp=2 microbatches=2", kPadded[] = "tp=2 vp sp microbatches=2 zero=1";
  const std::vector<double> plain = LossesAfterMove("f64", kPlain, kPlain, 257);
  for (const auto& [from, to] : {std::pair(kPlain, kPadded), {kPadded, kPlain}}) {
    SCOPED_TRACE(absl::StrCat(from, " -> ", to));
    const std::vector<double> moved = LossesAfterMove("f64", from, to, 257);
    ASSERT_EQ(moved.size(), plain.size());
    for (size_t i = 0; i < moved.size(); ++i) EXPECT_NEAR(moved[i], plain[i], 1e-9 * plain[i]);
  }
}

// The map is state: experts move between two steps, and training goes on as if nothing had happened.
TEST(TrainerTest, ExpertsMoveBetweenSteps) {
  constexpr char kStrategy[] = "dp=4 ep=4 microbatches=2 expert_map=0:1:2:3:0:-1:-1:1";
  ASSERT_OK_AND_ASSIGN(Rig still, Make(SmallConfig(kStrategy, "f64")));
  ASSERT_OK_AND_ASSIGN(const TrainResult want, still.trainer->Train());
  Rig moved;
  TrainerOptions options;
  const std::string table = "layers.1.moe.expert_map";
  options.before_step = [&](int64_t step) {
    if (step == 5) EXPECT_OK(moved.session->WriteState(table, {2, 2, 3, 1, 1, 0, 2, -1}));
    if (step == 8) EXPECT_OK(moved.session->WriteState(table, {3, -1, -1, 2, -1, 0, 1, -1}));
  };
  ASSERT_OK_AND_ASSIGN(moved, Make(SmallConfig(kStrategy, "f64"), options));
  ASSERT_OK_AND_ASSIGN(const TrainResult got, moved.trainer->Train());
  ASSERT_EQ(got.losses.size(), want.losses.size());
  for (size_t i = 0; i < want.losses.size(); ++i)
    EXPECT_NEAR(got.losses[i], want.losses[i], 1e-9 * want.losses[i]);
  ExpectError(moved.session->WriteState(table, {0, 1, 2, 2, -1, -1, -1, -1}),
              absl::StatusCode::kInvalidArgument, "expert 3 has no slot");
  ASSERT_OK_AND_ASSIGN(Rig without, Make(SmallConfig("dp=2 ep=2 expert_slots=6")));
  ExpectError(without.session->WriteState(table, {0, 1, 2, 3, 0, -1}), absl::StatusCode::kFailedPrecondition,
              "without replicas");
}

TEST(TrainerTest, StepsThatAreNotFiniteAreSkippedCountedAndEndTheRun) {
  ASSERT_OK_AND_ASSIGN(Rig s, Make(SmallConfig("dp=2 tp=2 microbatches=2")));
  ASSERT_OK_AND_ASSIGN(const std::vector<double> before, s.session->ReadState("layers.0.attn.wq"));
  ASSERT_OK_AND_ASSIGN(std::vector<double> norm, s.session->ReadState("final_norm"));
  norm[3] = INFINITY;
  ASSERT_OK(s.session->WriteState("final_norm", norm));
  ExpectError(s.trainer->Train(), absl::StatusCode::kFailedPrecondition, "step 3", "not finite in 3 steps",
              "--lr");
  EXPECT_EQ(s.trainer->meta().skipped_steps, 3);
  EXPECT_EQ(s.trainer->meta().nan_steps, 3);
  ASSERT_OK_AND_ASSIGN(const std::vector<double> after, s.session->ReadState("layers.0.attn.wq"));
  EXPECT_EQ(before, after);
}

// Gradients that overflow at the least scale, too, end the run, and so does a loss that is not finite, at any scale.
TEST(TrainerTest, AScaleThatCannotHelpEndsTheRun) {
  RunConfig config = SmallConfig("dp=2 ep=2 f16");
  TrainConfig& t = *config.mutable_train();
  t.set_train_iters(40);
  t.set_hysteresis(1);
  t.set_initial_loss_scale(std::ldexp(1.0, 40));
  t.set_min_loss_scale(std::ldexp(1.0, 38));
  ASSERT_OK_AND_ASSIGN(Rig s, Make(config));
  ExpectError(s.trainer->Train(), absl::StatusCode::kFailedPrecondition, "step 5", "not finite in 3 steps");
  EXPECT_EQ(s.trainer->meta().nan_steps, 0);
  ASSERT_OK_AND_ASSIGN(s, Make(config));
  ASSERT_OK_AND_ASSIGN(std::vector<double> norm, s.session->ReadState("final_norm"));
  norm[3] = INFINITY;
  ASSERT_OK(s.session->WriteState("final_norm", norm));
  ExpectError(s.trainer->Train(), absl::StatusCode::kFailedPrecondition, "step 3", "not finite in 3 steps");
}

TEST(TrainerTest, ASkippedStepDoesNotCountForTheBiasCorrections) {
  std::vector<double> norm;
  Rig s;
  TrainerOptions options;
  options.before_step = [&](int64_t step) {
    std::vector<double> now = norm;
    if (step == 1) now[3] = INFINITY;
    if (step <= 2) EXPECT_OK(s.session->WriteState("final_norm", now));
  };
  ASSERT_OK_AND_ASSIGN(s, Make(SmallConfig("dp=2"), options));
  ASSERT_OK_AND_ASSIGN(norm, s.session->ReadState("final_norm"));
  ASSERT_OK_AND_ASSIGN(const TrainResult result, s.trainer->Train());
  EXPECT_EQ(s.trainer->meta().skipped_steps, 1);
  EXPECT_EQ(s.trainer->meta().consecutive_skips, 0);
  EXPECT_LT(result.losses.back(), result.losses[1]);
  ASSERT_OK_AND_ASSIGN(const runtime::StepInputs next, s.trainer->NextInputs());
  EXPECT_DOUBLE_EQ(next.scalars.at("bias1"), 1 - std::pow(0.9, 12));
}

TEST(TrainerTest, RefusesCheckpointsOfOtherRuns) {
  const std::string dir = Folder("other");
  ASSERT_OK(MakeFolders(dir));
  TrainerOptions options;
  options.run_dir = dir;
  RunConfig config = SmallConfig("");
  config.mutable_train()->set_train_iters(1);
  ASSERT_OK_AND_ASSIGN(Rig a, Make(config, options));
  ASSERT_OK(a.trainer->Train());
  RunConfig other = config;
  other.mutable_model()->set_num_experts(8);
  ASSERT_OK_AND_ASSIGN(Rig b, Make(other));
  ExpectError(b.trainer->Resume(dir), absl::StatusCode::kFailedPrecondition, "num_experts");
  other = config;
  other.mutable_train()->set_seed(2);
  ASSERT_OK_AND_ASSIGN(Rig c, Make(other));
  ExpectError(c.trainer->Resume(dir), absl::StatusCode::kFailedPrecondition,
              "seed: checkpoint 1, this run 2");
  EXPECT_OK(c.trainer->LoadWeights(dir));
  ExpectError(c.trainer->Resume(Folder("nowhere")), absl::StatusCode::kNotFound, "nowhere");
}

TEST(GeneratorTest, LogitsAreThoseOfTheTrainedModelAndChoicesRepeat) {
  RunConfig config = SmallConfig("dp=2 tp=2");
  config.mutable_train()->set_train_iters(40);
  ASSERT_OK_AND_ASSIGN(Rig s, Make(config));
  ASSERT_OK(s.trainer->Train());
  ASSERT_OK_AND_ASSIGN(auto generator, Generator::Create(config.model()));
  ASSERT_OK(generator->LoadFrom(*s.session));
  // Mean of -log p over one window is the loss that evaluation reports for it.
  Batch batch(8, 16);
  ASSERT_OK(s.data->FillHeldOut(0, batch));
  double nll = 0;
  for (int i = 0; i < 16; ++i) {
    ASSERT_OK_AND_ASSIGN(const auto logits,
                         generator->NextLogits({batch.tokens.data(), static_cast<size_t>(i) + 1}));
    double sum = 0;
    for (double l : logits) sum += std::exp(l);
    nll += std::log(sum) - logits[batch.labels[i]];
  }
  ASSERT_OK_AND_ASSIGN(const double loss, s.trainer->Evaluate(1));
  EXPECT_NEAR(nll / 16, loss, 1e-4);
  ASSERT_OK_AND_ASSIGN(const std::string x, generator->Continue("line 3 of", {.tokens = 20, .seed = 3}));
  ASSERT_OK_AND_ASSIGN(const std::string y, generator->Continue("line 3 of", {.tokens = 20, .seed = 3}));
  EXPECT_EQ(x, y);
  EXPECT_EQ(x.size(), 20u);
  ExpectError(generator->Continue(""), absl::StatusCode::kInvalidArgument, "prompt");
  ExpectError(generator->Continue("a", {.temperature = -1}), absl::StatusCode::kInvalidArgument, "-1");
}

}  // namespace
}  // namespace moe::train
