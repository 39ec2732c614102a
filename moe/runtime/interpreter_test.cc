// What training means, told by the one-device oracle: on what losses and gradients may depend, and on what
// not.
#include "moe/runtime/interpreter.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "moe/base/status_matchers.h"
#include "moe/model/transformer.h"
#include "moe/passes/autodiff.h"
#include "moe/testing/random_inputs.h"

namespace moe::runtime {
namespace {

constexpr char kBase[] = R"(
  num_layers: 2 hidden_size: 12 num_attention_heads: 4 num_key_value_heads: 2 head_dim: 4 ffn_hidden_size: 10
  vocab_size: 14 num_experts: 5 moe_router_topk: 2 moe_ffn_hidden_size: 7
  aux_loss_coeff: 0.3 z_loss_coeff: 0.05 init_std: 0.3
)";

struct Trainer {
  std::unique_ptr<Module> module;
  std::unique_ptr<Interpreter> session;
};

Trainer Start(const std::string& fields, int64_t microbatches = 1, InterpreterOptions options = {}) {
  std::string text = absl::StrCat(kBase, fields);
  if (text.find("seq_length") == std::string::npos) absl::StrAppend(&text, " seq_length: 6");
  if (text.find("dtype") == std::string::npos) absl::StrAppend(&text, " dtype: \"f64\"");
  auto config = model::ParseModelConfig(text);
  CHECK(config.ok()) << config.status();
  Trainer run;
  run.module = *model::BuildModel(*config, {.global_batch = 8, .microbatches = microbatches});
  const absl::Status status = passes::Differentiate(*run.module);
  CHECK(status.ok()) << status;
  auto session = Interpreter::Create(*run.module, options);
  CHECK(session.ok()) << session.status();
  run.session = *std::move(session);
  const absl::Status init = run.session->InitializeState(1);
  CHECK(init.ok()) << init;
  return run;
}

StepInputs Inputs(const Trainer& run, testing::RandomInputOptions options = {}) {
  return *testing::RandomInputs(*run.module, options, 1);
}

Reports Train(const Trainer& run, const StepInputs& in) {
  auto r = run.session->TrainStep(in);
  CHECK(r.ok()) << r.status();
  return *r;
}

// Largest relative error over all states of a kind.
double GradientError(const Trainer& a, const Trainer& b) {
  double worst = 0;
  for (const std::string& name : a.session->StateNames()) {
    if (name.rfind("grad.", 0) != 0) continue;
    const std::vector<double> x = *a.session->ReadState(name), y = *b.session->ReadState(name);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < x.size(); ++i) difference += std::pow(x[i] - y[i], 2), norm += y[i] * y[i];
    if (std::isnan(difference)) return INFINITY;
    worst = std::max(worst, std::sqrt(difference) / std::max(std::sqrt(norm), 1e-12));
  }
  return worst;
}

TEST(Interpreter, LossesPerSequenceDoNotDependOnMicrobatches) {
  const std::string fields = "aux_loss_scope: \"sequence\" capacity_factor: 1";
  const Trainer one = Start(fields, 1);
  const Reports expected = Train(one, Inputs(one, {.empty_sample = true}));
  for (const int microbatches : {2, 8}) {
    const Trainer run = Start(fields, microbatches);
    const Reports r = Train(run, Inputs(run, {.empty_sample = true}));
    for (const char* loss : {"lm loss", "aux loss", "z loss", "grad norm"}) {
      EXPECT_NEAR(r.at(loss)[0], expected.at(loss)[0], 1e-12 * expected.at(loss)[0])
          << loss << " " << microbatches;
    }
    EXPECT_LT(GradientError(run, one), 1e-11);
  }
}

TEST(Interpreter, WithOneMicrobatchItsScopeIsTheGlobalBatch) {
  const Trainer a = Start("aux_loss_scope: \"microbatch\""), b = Start("aux_loss_scope: \"global_batch\"");
  const Reports ra = Train(a, Inputs(a)), rb = Train(b, Inputs(b));
  EXPECT_NEAR(ra.at("aux loss")[0], rb.at("aux loss")[0], 1e-13);
  EXPECT_LT(GradientError(a, b), 1e-11);
}

// After all microbatches have the same tokens, counts so far and counts of the microbatch have the same
// shares.
TEST(Interpreter, TheGlobalBatchAccumulatesCountsOverMicrobatches) {
  const Trainer a = Start("aux_loss_scope: \"microbatch\"", 2),
                b = Start("aux_loss_scope: \"global_batch\"", 2);
  StepInputs in = Inputs(a, {.masked = 0});
  const size_t half = in.tokens.size() / 2;
  std::copy_n(in.tokens.begin(), half, in.tokens.begin() + half);
  EXPECT_NEAR(Train(a, in).at("aux loss")[0], Train(b, in).at("aux loss")[0], 1e-13);
  // Otherwise they differ: the second microbatch sees the first one's counts.
  in = Inputs(a, {.masked = 0});
  EXPECT_GT(std::abs(Train(a, in).at("aux loss")[0] - Train(b, in).at("aux loss")[0]), 1e-6);
}

TEST(Interpreter, WhatPaddedTokensContainDoesNotMatter) {
  for (const char* fields : {"capacity_factor: 0.7 routing_groups_per_sequence: 2", "norm_topk_prob: true"}) {
    const Trainer a = Start(fields, 2), b = Start(fields, 2);
    StepInputs in = Inputs(a);
    // Padding at the end of each sequence: causal attention never looks at it.
    for (size_t i = 0; i < in.mask.size(); ++i) in.mask[i] = i % 6 < 4;
    in.scalars["inv_tokens"] = 1.5 / in.mask.size();
    const Reports ra = Train(a, in);
    for (size_t i = 0; i < in.mask.size(); ++i) {
      if (in.mask[i] == 0) in.tokens[i] = 13, in.labels[i] = 0;
    }
    const Reports rb = Train(b, in);
    EXPECT_EQ(ra, rb);
    EXPECT_LT(GradientError(a, b), 1e-14);
    EXPECT_EQ(ra.at("routed")[0],
              2.0 * 2 * in.mask.size() * 4 / 6);  // two MoE layers, top-2, four of six tokens
  }
}

TEST(Interpreter, AppendedPaddingChangesNothing) {
  const Trainer a = Start("seq_length: 6"), b = Start("seq_length: 9");
  const StepInputs in = Inputs(a);
  StepInputs longer = Inputs(b, {.masked = 1});
  longer.scalars = in.scalars;
  for (int i = 0; i < 8; ++i) {
    for (int s = 0; s < 9; ++s) {
      longer.mask[i * 9 + s] = s < 6 ? in.mask[i * 6 + s] : 0;
      if (s < 6)
        longer.tokens[i * 9 + s] = in.tokens[i * 6 + s], longer.labels[i * 9 + s] = in.labels[i * 6 + s];
    }
  }
  const Reports ra = Train(a, in), rb = Train(b, longer);
  for (const auto& [name, values] : ra) {
    for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(values[i], rb.at(name)[i], 1e-12) << name;
  }
  EXPECT_LT(GradientError(b, a), 1e-11);
}

TEST(Interpreter, EnoughCapacityIsDropless) {
  const Trainer a = Start("capacity_factor: 0", 2), b = Start("capacity_factor: 100", 2);
  const StepInputs in = Inputs(a);
  const Reports ra = Train(a, in), rb = Train(b, in);
  EXPECT_EQ(ra.at("kept"), ra.at("routed"));
  for (const auto& [name, values] : ra) EXPECT_NEAR(values[0], rb.at(name)[0], 1e-12) << name;
  EXPECT_LT(GradientError(a, b), 1e-11);
}

TEST(Interpreter, ABatchOfPaddingButOneTokenTrains) {
  for (const char* fields : {"capacity_factor: 0", "capacity_factor: 1 aux_loss_scope: \"sequence\"",
                             "norm_topk_prob: true aux_loss_scope: \"global_batch\""}) {
    const Trainer run = Start(fields, 4);
    StepInputs in = Inputs(run, {.masked = 1});
    in.scalars["inv_tokens"] = 1;
    const Reports r = Train(run, in);
    EXPECT_EQ(r.at("finite")[0], 1) << fields;
    EXPECT_EQ(r.at("routed")[0], 2 * 2) << fields;
    EXPECT_GT(r.at("lm loss")[0], 0) << fields;
  }
}

TEST(Interpreter, ReplayedDecisionsDetermineTheRouting) {
  const Trainer a = Start("norm_topk_prob: true", 2), b = Start("norm_topk_prob: true dtype: \"f32\"", 2);
  const StepInputs in = Inputs(a);
  Decisions decisions;
  a.session->RecordDecisions(&decisions);
  const Reports ra = Train(a, in);
  EXPECT_EQ(decisions.size(), 4);  // two layers, two microbatches
  // f32 follows f64 where it decides alike.
  b.session->ReplayDecisions(&decisions);
  const Reports rb = Train(b, in);
  EXPECT_EQ(ra.at("load layers.1"), rb.at("load layers.1"));
  EXPECT_NEAR(ra.at("lm loss")[0], rb.at("lm loss")[0], 1e-5);
  // All tokens to experts 3 and 4.
  for (auto& [key, experts] : decisions) {
    for (size_t i = 0; i < experts.size(); ++i)
      experts[i] = experts[i] < 0 ? -1 : 3 + static_cast<int>(i % 2);
  }
  const Reports forced = Train(b, in);
  EXPECT_EQ(forced.at("load layers.0")[0], 0);
  EXPECT_EQ(forced.at("load layers.0")[3], forced.at("routed")[0] / 4);
  decisions.begin()->second.pop_back();
  ExpectError(b.session->TrainStep(in), absl::StatusCode::kInvalidArgument, "another model");
  decisions.erase(decisions.begin());
  ExpectError(b.session->TrainStep(in), absl::StatusCode::kNotFound, "no recorded decision");
}

TEST(Interpreter, SameSeedSameBits) {
  const Trainer a = Start("capacity_factor: 1", 2), b = Start("capacity_factor: 1", 2);
  for (int step = 0; step < 3; ++step) EXPECT_EQ(Train(a, Inputs(a)), Train(b, Inputs(b)));
  for (const std::string& name : a.session->StateNames()) {
    EXPECT_EQ(*a.session->ReadState(name), *b.session->ReadState(name)) << name;
  }
}

TEST(Interpreter, EvaluationLeavesParametersAlone) {
  const Trainer run = Start("");
  const StepInputs in = Inputs(run);
  const std::vector<double> before = *run.session->ReadState("layers.1.moe.router");
  ASSERT_OK_AND_ASSIGN(const Reports eval, run.session->EvalStep(in));
  EXPECT_EQ(*run.session->ReadState("layers.1.moe.router"), before);
  const Reports train = Train(run, in);
  EXPECT_EQ(eval.at("lm loss"), train.at("lm loss"));
  EXPECT_NE(*run.session->ReadState("layers.1.moe.router"), before);
}

TEST(Interpreter, FastKernelsAgreeWithTheReference) {
  for (const char* fields : {"capacity_factor: 0.7", "tie_embeddings: true",
                             "shared_expert_ffn_hidden_size: 9 aux_loss_scope: \"sequence\""}) {
    const Trainer reference = Start(fields, 2);
    const StepInputs in = Inputs(reference);
    const Reports want = Train(reference, in);
    for (const kernels::Backend backend : {kernels::Backend::kCpu, kernels::Backend::kBlas}) {
      SCOPED_TRACE(::testing::Message() << fields << ", " << kernels::BackendName(backend));
      const Trainer fast = Start(fields, 2, {.backend = backend});
      const Reports got = Train(fast, in);
      for (const auto& [name, values] : want) EXPECT_NEAR(values[0], got.at(name)[0], 1e-10) << name;
      EXPECT_LT(GradientError(fast, reference), 1e-9);
    }
  }
}

TEST(Interpreter, WrongInputsAreNamed) {
  const Trainer run = Start("");
  StepInputs in = Inputs(run);
  in.scalars.erase("inv_tokens");
  ExpectError(run.session->TrainStep(in), absl::StatusCode::kInvalidArgument, "'inv_tokens'");
  in = Inputs(run);
  in.labels.pop_back();
  ExpectError(run.session->TrainStep(in), absl::StatusCode::kInvalidArgument, "labels has 47", "48");
  ExpectError(run.session->ReadState("nothing"), absl::StatusCode::kNotFound, "nothing");
  ExpectError(run.session->WriteState("final_norm", {1.0}), absl::StatusCode::kInvalidArgument,
              "12 elements");
}

TEST(Interpreter, ItTakesLogicalModulesOnly) {
  ExpectError(Interpreter::Create(Module("empty")), absl::StatusCode::kFailedPrecondition, "@step");
  const std::unique_ptr<Module> m = *model::BuildModel(
      *model::ParseModelConfig(absl::StrCat(kBase, " seq_length: 6")), {.global_batch = 8});
  ASSERT_OK_AND_ASSIGN(const auto forward, Interpreter::Create(*m));
  const StepInputs in = *testing::RandomInputs(*m, {}, 1);
  ExpectError(forward->TrainStep(in), absl::StatusCode::kFailedPrecondition, "autodiff");
  EXPECT_OK(forward->EvalStep(in));
}

}  // namespace
}  // namespace moe::runtime
