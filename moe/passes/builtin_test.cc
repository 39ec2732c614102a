#include "moe/passes/builtin.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/diff.h"
#include "moe/ir/runnable.h"
#include "moe/ir/serialize.h"
#include "moe/ir/text.h"
#include "moe/ir/verifier.h"
#include "moe/passes/pipeline.h"
#include "moe/strategy/strategy.h"
#include "moe/testing/compile_program.h"

namespace moe::passes {
namespace {

model::ModelConfig Config(double capacity_factor) {
  model::ModelConfig c;
  c.set_name("small");
  c.set_num_layers(3);
  c.set_hidden_size(16);
  c.set_num_attention_heads(4);
  c.set_num_key_value_heads(2);
  c.set_ffn_hidden_size(24);
  c.set_vocab_size(32);
  c.set_seq_length(8);
  c.set_num_experts(4);
  c.set_moe_router_topk(2);
  c.set_first_dense_layers(1);
  c.set_capacity_factor(capacity_factor);
  c.set_aux_loss_coeff(0.01);
  c.set_z_loss_coeff(0.001);
  c.set_tie_embeddings(true);
  return model::ResolveModelConfig(c);
}

class DefaultPipelineTest : public ::testing::TestWithParam<const char*> {};

// What every pass leaves behind verifies, and text and protobuf forms give it back.
TEST_P(DefaultPipelineTest, EveryStepVerifiesAndRoundTrips) {
  for (const double capacity_factor : {1.5, 0.0}) {
    const model::ModelConfig config = Config(capacity_factor);
    PipelineOptions options;
    std::vector<std::string> changed;
    options.validate = [&](const std::string& pass, const Program&, const Program& after) -> absl::Status {
      changed.push_back(pass);
      const absl::StatusOr<std::unique_ptr<Module>> parsed = ParseModule(PrintModule(*after.module));
      EXPECT_TRUE(parsed.ok()) << pass << ": " << parsed.status();
      if (parsed.ok()) {
        EXPECT_EQ(DiffModules(*after.module, **parsed), "") << pass;
      }
      const absl::StatusOr<std::unique_ptr<Module>> read = FromProto(ToProto(*after.module));
      EXPECT_TRUE(read.ok()) << pass << ": " << read.status();
      if (read.ok()) {
        EXPECT_EQ(DiffModules(*after.module, **read), "") << pass;
      }
      return absl::OkStatus();
    };
    EXPECT_OK(testing::CompileProgram(config, GetParam(), {.passes = options}).status());
    EXPECT_GE(changed.size(), 5);
  }
}

INSTANTIATE_TEST_SUITE_P(Strategies, DefaultPipelineTest,
                         ::testing::Values("dp=1", "pp=2 microbatches=2", "dp=2 ep=2 zero=1",
                                           "pp=2 dp=2 tp=2 ep=2 etp=2 microbatches=2",
                                           "dp=2 tp=2 ep=4 sp zero=3"));

// Runs `pipeline` without the pass `off` and checks what is left for the trainer.
absl::Status Incomplete(const std::string& words, const std::string& pipeline, const std::string& off = "") {
  PipelineOptions options;
  if (!off.empty()) options.disable_passes = {off};
  ASSIGN_OR_RETURN(const Program program,
                   testing::CompileProgram(Config(1.5), words, {.pipeline = pipeline, .passes = options}));
  return CheckTrainable(program);
}

constexpr const char* kWords[] = {"dp=1", "pp=2 dp=2 tp=2 ep=2 etp=2 sp zero=1 microbatches=2 overlap=on",
                                  "pp=2 schedule=zb-h1 microbatches=2", "dp=2 ep=2 zero=3 bf16"};

// Whatever is missing is named, and so is a pass that gives it and has not run.
TEST(Builtin, EveryPrefixOfTheDefaultPipelineIsRefusedByName) {
  for (const std::string words : kWords) {
    std::vector<std::string> rest;
    for (const DefaultStep& s : DefaultSteps()) rest.emplace_back(s.step);
    std::string prefix;
    while (true) {
      SCOPED_TRACE(absl::StrCat(words, ": ", prefix));
      // An empty pipeline would be the default one, so none at all is a pass that is off.
      const absl::Status status =
          prefix.empty() ? Incomplete(words, rest[0], rest[0]) : Incomplete(words, prefix);
      const bool runs = std::find(rest.begin(), rest.end(), "plan-memory") == rest.end();
      EXPECT_EQ(status.ok(), runs) << status;
      if (!runs) {
        EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
        const std::string message(status.message());
        EXPECT_TRUE(std::any_of(rest.begin(), rest.end(), [&](const std::string& pass) {
          return absl::StrContains(message, pass);
        })) << message;
      }
      if (rest.empty()) break;
      absl::StrAppend(&prefix, prefix.empty() ? "" : ",", rest[0]);
      rest.erase(rest.begin());
    }
  }
}

// A pass that is left out is not missed, or is missed by a later pass or by the check.
TEST(Builtin, EveryPassLeftOutIsHarmlessOrRefused) {
  const std::set<std::string> needed = {"autodiff", "partition-stages", "split-phases", "schedule",
                                        "plan-memory"};
  for (const std::string words : kWords) {
    const bool exchanges = absl::StrContains(words, "dp=2");
    for (const DefaultStep& s : DefaultSteps()) {
      const std::string pass(s.step);
      SCOPED_TRACE(absl::StrCat(words, " without ", pass));
      const absl::Status status = Incomplete(words, DefaultPipeline(), pass);
      if (needed.count(pass) > 0 || (exchanges && pass == "insert-collectives")) {
        EXPECT_FALSE(status.ok());
      }
      if (pass == "autodiff") {  // certify names the parameter, mixed-precision the pass
        EXPECT_TRUE(absl::StrContains(status.message(), "the parameter @embedding") ||
                    absl::StrContains(status.message(), "autodiff"))
            << status;
      }
    }
  }
}

TEST(Builtin, DefaultPipelineNamesRegisteredPasses) {
  ASSERT_OK_AND_ASSIGN(const std::vector<PipelineStep> steps, ParsePipeline(DefaultPipeline()));
  for (const PipelineStep& step : steps) EXPECT_NE(Passes().Find(step.pass), nullptr) << step.pass;
}

TEST(Builtin, EveryStepOfTheDefaultPipelineHasAReason) {
  for (const DefaultStep& step : DefaultSteps()) {
    EXPECT_TRUE(step.reason.size() > 10 && step.reason.back() == '.') << step.step;
  }
}

TEST(Builtin, EveryPassIsDescribed) {
  for (const PassDef* pass : Passes().All()) {
    EXPECT_TRUE(pass->doc.size() > 10 && pass->doc.back() == '.') << pass->name;
  }
}

}  // namespace
}  // namespace moe::passes
