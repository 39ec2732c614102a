// Gradients of whole models against finite differences, in f64, through the interpreter. Routing is replayed,
// so that a small step does not change a choice.
#include <cmath>

#include "glog/logging.h"
#include "moe/base/status_matchers.h"
#include "moe/model/transformer.h"
#include "moe/passes/autodiff.h"
#include "moe/runtime/init.h"
#include "moe/runtime/interpreter.h"
#include "moe/testing/random_inputs.h"

namespace moe::passes {
namespace {

struct Case {
  const char* name;
  const char* fields;  // on top of kBase
};

constexpr char kBase[] = R"(
  num_layers: 2 hidden_size: 12 num_attention_heads: 4 num_key_value_heads: 2 head_dim: 4 ffn_hidden_size: 10
  vocab_size: 14 seq_length: 6 num_experts: 5 moe_ffn_hidden_size: 7
  aux_loss_coeff: 0.3 z_loss_coeff: 0.05 init_std: 0.3 dtype: "f64"
)";

std::string Text(const Case& c) {
  const std::string text = std::string(kBase) + c.fields;
  return text.find("moe_router_topk") == std::string::npos ? text + " moe_router_topk: 2" : text;
}

void PrintTo(const Case& c, std::ostream* os) { *os << c.name; }

class WholeModelGradient : public ::testing::TestWithParam<Case> {};

TEST_P(WholeModelGradient, MatchesFiniteDifferences) {
  ASSERT_OK_AND_ASSIGN(const model::ModelConfig config, model::ParseModelConfig(Text(GetParam())));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> module,
                       model::BuildModel(config, {.global_batch = 6, .microbatches = 2, .clip_grad = 0}));
  ASSERT_OK(Differentiate(*module));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<runtime::Interpreter> s, runtime::Interpreter::Create(*module));
  ASSERT_OK(s->InitializeState(5));
  ASSERT_OK_AND_ASSIGN(const runtime::StepInputs in,
                       testing::RandomInputs(*module, {.seed = 2, .learning_rate = 0}, 1));
  runtime::Decisions decisions;
  s->RecordDecisions(&decisions);
  ASSERT_OK_AND_ASSIGN(runtime::Reports reports, s->TrainStep(in));
  s->RecordDecisions(nullptr);
  s->ReplayDecisions(&decisions);
  EXPECT_GT(reports.at("kept")[0], 0);

  auto objective = [&]() {
    auto r = s->EvalStep(in);
    CHECK(r.ok()) << r.status();
    return r->at("lm loss")[0] + config.aux_loss_coeff() * r->at("aux loss")[0] +
           config.z_loss_coeff() * r->at("z loss")[0];
  };
  std::map<std::string, std::vector<double>> gradients;  // EvalStep resets them
  for (const std::string& name : s->StateNames()) {
    if (name.rfind("grad.", 0) == 0) gradients[name.substr(5)] = *s->ReadState(name);
  }
  for (const auto& [name, gradient] : gradients) {
    ASSERT_OK_AND_ASSIGN(std::vector<double> values, s->ReadState(name));
    double largest = 0;
    for (const double g : gradient) largest = std::max(largest, std::abs(g));
    EXPECT_GT(largest, 0) << name;
    for (int probe = 0; probe < 4; ++probe) {
      const size_t i = runtime::CounterBits(9, runtime::StreamOf(name), probe) % values.size();
      const double at = values[i], step = 1e-5;
      double f[2];
      for (int side = 0; side < 2; ++side) {
        values[i] = at + (side ? step : -step);
        ASSERT_OK(s->WriteState(name, values));
        f[side] = objective();
      }
      values[i] = at;
      ASSERT_OK(s->WriteState(name, values));
      EXPECT_NEAR(gradient[i], (f[1] - f[0]) / (2 * step), 1e-8 + 1e-6 * largest) << name << "[" << i << "]";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, WholeModelGradient,
    ::testing::Values(Case{"capacity",
                           "capacity_factor: 1 first_dense_layers: 1 routing_groups_per_sequence: 2"},
                      Case{"dropless", "routing_groups_per_sequence: 3"},
                      Case{"normalised", "norm_topk_prob: true capacity_factor: 1.5"},
                      Case{"tied", "tie_embeddings: true first_dense_layers: 1 capacity_factor: 0.7"},
                      Case{"shared_expert", "shared_expert_ffn_hidden_size: 9 first_dense_layers: 1"},
                      Case{"scope_sequence", "aux_loss_scope: \"sequence\" moe_layer_freq: 2"},
                      Case{"scope_microbatch", "aux_loss_scope: \"microbatch\" capacity_factor: 1"},
                      Case{"scope_global_batch", "aux_loss_scope: \"global_batch\" capacity_factor: 1"},
                      Case{"top_1", "moe_router_topk: 1 vocab_blocks: 7"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace moe::passes
