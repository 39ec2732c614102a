// The interpreter of the logical graph against the model written by hand: 20 training steps.
#include "moe/testing/hand_written/small_transformer.h"

#include <cmath>

#include "moe/base/status_matchers.h"
#include "moe/model/transformer.h"
#include "moe/passes/autodiff.h"
#include "moe/runtime/interpreter.h"
#include "moe/testing/random_inputs.h"

namespace moe::testing {
namespace {

model::ModelConfig ConfigOf(const SmallTransformerSizes& z) {
  model::ModelConfig c;
  c.set_name("small_transformer");
  c.set_num_layers(2);
  c.set_hidden_size(z.hidden);
  c.set_num_attention_heads(z.heads);
  c.set_num_key_value_heads(z.kv_heads);
  c.set_head_dim(z.head_dim);
  c.set_ffn_hidden_size(z.ffn);
  c.set_vocab_size(z.vocab);
  c.set_seq_length(z.seq);
  c.set_num_experts(z.experts);
  c.set_moe_router_topk(z.top_k);
  c.set_moe_ffn_hidden_size(z.expert_ffn);
  c.set_first_dense_layers(1);
  c.set_norm_topk_prob(true);
  c.set_capacity_factor(1.25);
  c.set_routing_groups_per_sequence(z.groups);
  c.set_aux_loss_coeff(z.aux_coeff);
  c.set_z_loss_coeff(z.z_coeff);
  c.set_norm_eps(z.eps);
  c.set_init_std(0.3);
  c.set_dtype("f64");
  return c;
}

double Error(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return INFINITY;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference) / std::max(std::sqrt(norm), 1e-9);
}

TEST(SmallTransformer, TwentyStepsAgreeWithTheInterpreter) {
  const SmallTransformerSizes z;
  const model::ModelConfig config = model::ResolveModelConfig(ConfigOf(z));
  ASSERT_EQ(model::SlotsPerExpert(config), z.capacity);
  const model::BuildOptions options = {.global_batch = z.batch,
                                       .microbatches = z.microbatches,
                                       .beta1 = z.beta1,
                                       .beta2 = z.beta2,
                                       .eps = z.adam_eps,
                                       .weight_decay = z.weight_decay,
                                       .clip_grad = z.clip};
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> module, model::BuildModel(config, options));
  ASSERT_OK(passes::Differentiate(*module));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<runtime::Interpreter> interpreter,
                       runtime::Interpreter::Create(*module));
  ASSERT_OK(interpreter->InitializeState(3));

  SmallTransformer oracle(z);
  for (auto& [name, values] : oracle.parameters()) {
    ASSERT_OK_AND_ASSIGN(const std::vector<double> initial, interpreter->ReadState(name));
    ASSERT_EQ(initial.size(), values.size()) << name;
    values = initial;
  }

  double dropped = 0, clipped = 0;
  for (int step = 1; step <= 20; ++step) {
    SCOPED_TRACE(step);
    ASSERT_OK_AND_ASSIGN(const runtime::StepInputs in,
                         RandomInputs(*module, {.seed = 11, .learning_rate = 0.01}, step));
    ASSERT_OK_AND_ASSIGN(runtime::Reports reports, interpreter->TrainStep(in));
    const SmallTransformer::Losses losses = oracle.Step({in.tokens, in.labels, in.mask}, 0.01, step);
    EXPECT_NEAR(reports.at("lm loss")[0], losses.lm, 1e-11 * losses.lm);
    EXPECT_NEAR(reports.at("aux loss")[0], losses.aux, 1e-11 * losses.aux);
    EXPECT_NEAR(reports.at("z loss")[0], losses.z, 1e-11 * losses.z);
    EXPECT_NEAR(reports.at("grad norm")[0], losses.grad_norm, 1e-10 * losses.grad_norm);
    EXPECT_EQ(reports.at("finite")[0], 1);
    EXPECT_EQ(reports.at("routed")[0], losses.routed);
    EXPECT_EQ(reports.at("kept")[0], losses.kept);
    double load = 0;
    for (const double n : reports.at("load layers.1")) load += n;
    EXPECT_EQ(load, losses.routed);
    dropped += losses.routed - losses.kept;
    clipped += losses.grad_norm > z.clip;
    for (const auto& [name, gradient] : oracle.gradients()) {
      ASSERT_OK_AND_ASSIGN(const std::vector<double> ours, interpreter->ReadState("grad." + name));
      EXPECT_LT(Error(ours, gradient), 1e-10) << name;
    }
  }
  // The run met what it is about.
  EXPECT_GT(dropped, 0);
  EXPECT_GT(clipped, 0);
  for (const auto& [name, values] : oracle.parameters()) {
    ASSERT_OK_AND_ASSIGN(const std::vector<double> ours, interpreter->ReadState(name));
    EXPECT_LT(Error(ours, values), 1e-10) << name;
  }
}

}  // namespace
}  // namespace moe::testing
