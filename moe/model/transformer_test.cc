#include "moe/model/transformer.h"

#include <set>

#include "glog/logging.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/state.h"
#include "moe/ir/text.h"
#include "moe/ir/verifier.h"

namespace moe::model {
namespace {

std::unique_ptr<Module> Build(const std::string& file, BuildOptions options = {}) {
  auto config = LoadModelConfig("testdata/models/" + file);
  CHECK(config.ok()) << config.status();
  auto module = BuildModel(*config, options);
  CHECK(module.ok()) << module.status();
  return *std::move(module);
}

TEST(Transformer, EveryShippedModelVerifiesAndRoundTrips) {
  for (const char* file : {"tiny_moe.textproto", "small_test.textproto", "odd_test.textproto",
                           "mixtral_8x22b.textproto", "fine_grained.textproto", "moe_30b.textproto"}) {
    SCOPED_TRACE(file);
    const std::unique_ptr<Module> m = Build(file, {.global_batch = 8, .microbatches = 2});
    EXPECT_OK(Verify(*m));
    const std::string text = PrintModule(*m);
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> again, ParseModule(text));
    EXPECT_EQ(PrintModule(*again), text);
  }
}

TEST(Transformer, ParameterCountIsThatOfTheStates) {
  for (const char* file : {"tiny_moe.textproto", "odd_test.textproto", "fine_grained.textproto"}) {
    ASSERT_OK_AND_ASSIGN(const ModelConfig config, LoadModelConfig(std::string("testdata/models/") + file));
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> m, BuildModel(config, {}));
    int64_t total = 0;
    for (const auto& s : m->states()) {
      if (AttrString(s->attributes, "kind") == "parameter") total += s->type.num_elements();
    }
    EXPECT_EQ(total, CountParameters(config).total) << file;
  }
}

// By hand, for a model that has every kind of layer and of weight.
TEST(Transformer, FlopsOfATokenCountChosenExpertsAndHalfOfAttention) {
  ModelConfig c;
  c.set_num_layers(3);
  c.set_hidden_size(8);
  c.set_num_attention_heads(4);
  c.set_num_key_value_heads(2);
  c.set_head_dim(4);
  c.set_ffn_hidden_size(20);
  c.set_vocab_size(64);
  c.set_seq_length(10);
  c.set_num_experts(5);
  c.set_moe_router_topk(2);
  c.set_moe_ffn_hidden_size(12);
  c.set_shared_expert_ffn_hidden_size(6);
  c.set_first_dense_layers(1);
  const double projections = 3 * 8 * 4 * (4 + 2 + 2 + 4), dense = 3 * 8 * 20;
  const double moe = 2 * (8 * 5 + 2 * 3 * 8 * 12 + 3 * 8 * 6), head = 64 * 8;
  const double attention = 3 * 4 * 4 * 10 / 2 * 2;  // scores and values of the half that is seen
  EXPECT_EQ(ModelFlopsPerToken(c), 6 * (projections + dense + moe + head + attention));
  c.set_tie_embeddings(true);
  EXPECT_EQ(ModelFlopsPerToken(c), 6 * (projections + dense + moe + head + attention));
}

// What the placement of a model hangs on: who is the residual stream, where a part of the model begins and
// ends, which losses there are.
TEST(Transformer, ScopesTagsAndLosses) {
  const std::unique_ptr<Module> m = Build("small_test.textproto", {.global_batch = 6, .microbatches = 3});
  const Function& step = *m->Find("step");
  int stream = 0;
  std::set<std::string> scopes;
  for (const Node* n : step.Nodes()) {
    stream += n->StringOr("tag", "") == "residual_stream";
    scopes.insert(n->scope);
  }
  EXPECT_EQ(stream, 5);  // embedding, two per layer
  EXPECT_EQ(scopes, (std::set<std::string>{"embedding", "head", "layers.0.attn", "layers.0.mlp",
                                           "layers.1.attn", "layers.1.moe"}));
  std::set<std::string> losses, reports;
  for (int i = 0; i < step.num_results(); ++i) {
    if (step.result_binding(i).kind == Binding::kLoss) losses.insert(step.result_binding(i).name);
  }
  EXPECT_EQ(losses, (std::set<std::string>{"lm_loss", "aux_loss.layers.1", "z_loss.layers.1"}));
  const Function& report = *m->Find("report");
  for (int i = 0; i < report.num_results(); ++i) reports.insert(report.result_binding(i).name);
  EXPECT_EQ(reports,
            (std::set<std::string>{"lm loss", "aux loss", "z loss", "load layers.1", "routed", "kept"}));
  EXPECT_EQ(FindArg(step, Binding::kBatch, "tokens")->type().dims, (Dims{2, 16}));
}

TEST(Transformer, BatchProblemsComeWithThoseOfTheModel) {
  ModelConfig c = *LoadModelConfig("testdata/models/small_test.textproto");
  c.set_moe_router_topk(9);
  ExpectError(BuildModel(c, {.global_batch = 10, .microbatches = 4}), absl::StatusCode::kInvalidArgument,
              "moe_router_topk = 9", "global_batch = 10", "microbatches = 4");
}

}  // namespace
}  // namespace moe::model
