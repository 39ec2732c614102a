#include "moe/testing/validate_passes.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/builder.h"
#include "moe/ir/conversion_steps.h"
#include "moe/ir/state.h"
#include "moe/model/transformer.h"
#include "moe/passes/builtin.h"
#include "moe/passes/pipeline.h"
#include "moe/runtime/local.h"
#include "moe/strategy/fold.h"
#include "moe/testing/sharded_model.h"

namespace moe::testing {
namespace {

struct Case {
  const char* model;  // moe, dropless, dense, tied, f32, odd words
  const char* strategy;
};

model::ModelConfig Model(const std::string& name) {
  model::ModelConfig c = name == "dropless" ? SmallDropless() : name == "dense" ? SmallDense() : SmallMoe();
  if (name == "tied") c.set_tie_embeddings(true);
  if (name == "f32") c.set_dtype("f32");
  if (name == "odd words") c.set_vocab_size(31), c.set_vocab_blocks(1), c.set_tie_embeddings(true);
  c.set_init_std(0.2);
  return model::ResolveModelConfig(c);
}

// Runs the passes under the validator. `passed`: those that changed something and were found innocent.
absl::Status Validate(const passes::PassRegistry& registry, const std::string& pipeline, const Case& c,
                      bool verify, std::vector<std::string>* passed = nullptr) {
  passes::PassContext context;
  ASSIGN_OR_RETURN(context.strategy, strategy::ParseStrategy(c.strategy));
  context.workspace = runtime::WorkspaceHook(kernels::Backend::kCpu, context.strategy.overload);
  model::BuildOptions build;
  build.global_batch = 8;
  build.microbatches = context.strategy.microbatches;
  build.clip_grad = 0.05;
  const model::ModelConfig model = Model(c.model);
  Program program;
  ASSIGN_OR_RETURN(program.module, model::BuildModel(model, build));
  ASSIGN_OR_RETURN(program.module->mesh(), strategy::FoldMesh(context.strategy, model.num_key_value_heads()));
  PassValidator validator;
  passes::PipelineOptions options;
  options.verify = verify;
  options.validate = [&](const std::string& pass, const Program& before,
                         const Program& after) -> absl::Status {
    RETURN_IF_ERROR(validator.Compare(pass, before, after));
    if (passed != nullptr) passed->push_back(pass);
    return absl::OkStatus();
  };
  return passes::RunPipeline(registry, pipeline, program, context, options).status();
}

class EveryPassTest : public ::testing::TestWithParam<Case> {};

// The meaning of every pass: what a training step gives is the same before and after it.
TEST_P(EveryPassTest, KeepsTheMeaning) {
  std::string pipeline = absl::StrCat(passes::DefaultPipeline());
  pipeline.insert(pipeline.find("expert-slots"), "common-subexpressions,remove-dead-nodes,");
  if (!absl::StrContains(pipeline, "fuse")) {
    const size_t at = pipeline.find("split-phases");
    ASSERT_NE(at, std::string::npos);
    pipeline.insert(at, "fuse,");
  }
  std::vector<std::string> passed;
  EXPECT_OK(Validate(passes::Passes(), pipeline, GetParam(), /*verify=*/true, &passed));
  EXPECT_GE(passed.size(), 6);
}

INSTANTIATE_TEST_SUITE_P(
    Strategies, EveryPassTest,
    ::testing::Values(
        Case{"moe", "dp=1"}, Case{"dense", "tp=2 dp=2 cp=2"}, Case{"moe", "tp=2 dp=4 ep=8 sp zero=1"},
        Case{"tied", "pp=2 dp=2 tp=2 ep=2 etp=2 microbatches=4"},
        Case{"dropless", "tp=2 dp=4 ep=4 sp vp zero=3 checkpoint=selective"},
        Case{"dropless", "pp=2 dp=2 ep=2 microbatches=2 checkpoint=full overload=0.8"},
        Case{"dropless", "pp=2 dp=2 ep=2 zero=1 microbatches=2 bucket=65536 overlap=on moe_chunks=2"},
        Case{"f32", "pp=2 dp=2 tp=2 ep=4 sp vp microbatches=2 schedule=gpipe"},
        Case{"f32", "pp=2 dp=2 tp=2 ep=4 sp vp zero=1 microbatches=2 bf16 checkpoint=selective"},
        Case{"f32", "dp=4 ep=2 zero=3 f16 compress_dispatch=f8 compress_gather=f8 compress_grad=bf16"},
        Case{"f32", "pp=2 dp=2 ep=2 microbatches=2 overlap=on moe_chunks=2 bf16 fp8_experts"},
        Case{"tied", "pp=2 tp=2 etp=2 sp microbatches=2 schedule=zb-h1 zero=1"},
        Case{"moe", "dp=4 ep=4 zero=1 expert_map=0:1:2:3:4:5:6:7:3:3:-1:0"},
        Case{"odd words", "pp=2 tp=2 vp microbatches=2 etp=2 expert_slots=10"}));

// A registry of the built-in passes and one that is wrong.
passes::PassRegistry With(const char* name, passes::Pass pass) {
  passes::PassRegistry registry;
  passes::RegisterBuiltinPasses(&registry);
  registry.Add({name, "Wrong on purpose.", std::move(pass)});
  return registry;
}

TEST(ValidatePasses, NamesExchangedOperands) {
  std::string name;
  const passes::PassRegistry registry =
      With("swap", [&](Program& p, const passes::PassContext&) -> absl::StatusOr<bool> {
        for (const auto& f : p.module->functions()) {
          for (Node* n : f->NodesOf("nn.swiglu")) {
            const Value a = n->operand(0), b = n->operand(1);
            n->SetOperand(0, b);
            n->SetOperand(1, a);
            name = n->result_name();
            return true;
          }
        }
        return false;
      });
  absl::Status status = Validate(registry, "autodiff,swap", {"moe", "dp=1"}, true);
  ExpectError(status, absl::StatusCode::kInternal, "pass swap changed the results",
              absl::StrCat("%", name, " = nn.swiglu in @step"), "on rank 0", "before the pass");
  status = Validate(registry, "autodiff,partition-stages,shard,swap", {"dense", "tp=2 dp=2"}, true);
  ExpectError(status, absl::StatusCode::kInternal, "pass swap changed the results",
              absl::StrCat("%", name, " = nn.swiglu in @chunk0"), "on rank");
}

TEST(ValidatePasses, NamesADoubledGradient) {
  const auto twice = [](Program& p, const passes::PassContext&) -> absl::StatusOr<bool> {
    for (const auto& f : p.module->functions()) {
      for (Node* n : f->NodesOf("optim.accumulate")) {
        if (n->phase != Phase::kBackward) continue;
        Builder b = Builder::Before(n);
        ASSIGN_OR_RETURN(const Value scaled, b.Create("math.scale", {n->operand(1)}, {{"by", 2.0}}));
        n->SetOperand(1, scaled);
        return true;
      }
    }
    return false;
  };
  ExpectError(
      Validate(With("twice", twice), "autodiff,partition-stages,twice", {"moe", "pp=2 microbatches=2"}, true),
      absl::StatusCode::kInternal, "pass twice", "optim.accumulate in @chunk", "on rank");
  // Within autodiff itself.
  const auto wrong = [&](Program& p, const passes::PassContext& c) -> absl::StatusOr<bool> {
    RETURN_IF_ERROR(passes::Passes().Find("autodiff")->run(p, c).status());
    return twice(p, c);
  };
  ExpectError(Validate(With("wrong-autodiff", wrong), "wrong-autodiff", {"moe", "dp=1"}, true),
              absl::StatusCode::kInternal, "pass wrong-autodiff", "the gradient of", "optim.accumulate");
}

TEST(ValidatePasses, NamesALostReduction) {
  std::string name;
  const passes::PassRegistry registry =
      With("lose", [&](Program& p, const passes::PassContext&) -> absl::StatusOr<bool> {
        for (Node* n : p.module->Find("chunk0")->NodesOf("comm.all_reduce")) {
          if (n->type().rank() != 3) continue;
          name = n->uses()[0].user->result_name();
          p.module->Find("chunk0")->ReplaceAllUses(n->result(), n->operand(0));
          return true;
        }
        return false;
      });
  const absl::Status status = Validate(registry, "autodiff,partition-stages,shard,insert-collectives,lose",
                                       {"dense", "tp=2 dp=2"}, false);
  ExpectError(status, absl::StatusCode::kInternal, "pass lose", absl::StrCat("%", name), "on rank");
}

// A collective that runs other steps than its types say.
TEST(ValidatePasses, NamesACollectiveThatDoesSomethingElse) {
  const passes::PassRegistry registry =
      With("reverse", [](Program& p, const passes::PassContext&) -> absl::StatusOr<bool> {
        for (Node* n : p.module->Find("chunk0")->NodesOf("comm.slice")) {
          ConversionStep step{StepKind::kSlice, {}};
          for (const AxisId a : n->axes()) step.moves.push_back({a, Placement::kNone, n->type().rank()});
          n->Set("steps", PrintSteps({step}, p.module->mesh()));
          return true;
        }
        return false;
      });
  const absl::Status status = Validate(registry, "autodiff,partition-stages,shard,insert-collectives,reverse",
                                       {"moe", "tp=2 dp=2 ep=2"}, false);
  EXPECT_FALSE(status.ok());
  EXPECT_TRUE(absl::StrContains(status.message(), "validating pass reverse, the program after it")) << status;
}

TEST(ValidatePasses, NamesALostUpdate) {
  const passes::PassRegistry registry =
      With("lose", [](Program& p, const passes::PassContext&) -> absl::StatusOr<bool> {
        Function* f = p.module->Find("update0");
        for (int i = 0; i < f->num_results(); ++i) {
          if (f->result_binding(i).name != "layers.0.attn.wq") continue;
          f->RemoveResult(i);
          return true;
        }
        return false;
      });
  ExpectError(Validate(registry, "autodiff,partition-stages,lose", {"dense", "dp=2"}, false),
              absl::StatusCode::kInternal, "pass lose", "layers.0.attn.wq");
}

}  // namespace
}  // namespace moe::testing
