// Real models at real sizes: compiled by the whole default pipeline and certified, not executed.
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/diff.h"
#include "moe/ir/text.h"
#include "moe/model/config.h"
#include "moe/model/transformer.h"
#include "moe/passes/pipeline.h"
#include "moe/plan/compile.h"
#include "moe/plan/plan.h"
#include "moe/runtime/local.h"

namespace moe::plan {
namespace {

absl::StatusOr<Compiled> CompileModel(const model::ModelConfig& model, const std::string& text,
                                      int64_t global_batch) {
  ASSIGN_OR_RETURN(const strategy::Strategy strategy, strategy::ParseStrategy(text));
  model::BuildOptions build;
  build.global_batch = global_batch;
  build.microbatches = strategy.microbatches;
  ASSIGN_OR_RETURN(std::unique_ptr<Module> module, model::BuildModel(model, build));
  CompileOptions options;
  options.workspace = runtime::WorkspaceHook(kernels::Backend::kCpu, strategy.overload);
  return Compile(std::move(module), strategy, options);
}

struct Case {
  const char* model;
  const char* strategy;
  int64_t global_batch, ranks;
};

class RealSizesTest : public ::testing::TestWithParam<Case> {};

TEST_P(RealSizesTest, CompilesAndIsCertified) {
  const Case& c = GetParam();
  ASSERT_OK_AND_ASSIGN(const model::ModelConfig model,
                       model::LoadModelConfig(absl::StrCat("testdata/models/", c.model, ".textproto")));
  ASSERT_OK_AND_ASSIGN(const Compiled compiled, CompileModel(model, c.strategy, c.global_batch));
  const Plan& plan = compiled.plan;
  EXPECT_EQ(plan.mesh().num_ranks(), c.ranks);
  EXPECT_EQ(compiled.passes.back().name, "certify");
  for (const passes::PassResult& pass : compiled.passes)
    RecordProperty(pass.name, absl::StrCat(pass.milliseconds, " ms"));

  // No rank can do with less than its share of parameters, gradients and moments; and a plan is of no use if
  // its ranks need more than any device has.
  const double share =
      static_cast<double>(model::CountParameters(model).total) * 16 / static_cast<double>(c.ranks);
  double most = 0;
  for (const StageMemory& stage : plan.program.memory.stages) {
    EXPECT_GT(stage.state_bytes, 0);
    EXPECT_LT(stage.peak_bytes(), 180e9);
    most = std::max(most, static_cast<double>(stage.peak_bytes()));
  }
  EXPECT_GE(most, share);

  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> parsed, ParseModule(PrintModule(plan.module())));
  EXPECT_EQ(DiffModules(plan.module(), *parsed), "");
  const std::string bytes = SerializePlan(plan);
  ASSERT_OK_AND_ASSIGN(const Plan read, ParsePlan(bytes));  // certifies again
  EXPECT_EQ(SerializePlan(read), bytes);
}

INSTANTIATE_TEST_SUITE_P(
    Models, RealSizesTest,
    ::testing::Values(
        Case{"mixtral_8x22b", "pp=8 tp=8 dp=16 ep=8 sp vp zero=1 checkpoint=selective microbatches=16", 256,
             1024},
        Case{"moe_10b", "pp=4 dp=4 ep=4 zero=1 microbatches=8", 64, 16},
        Case{"moe_30b", "pp=4 tp=8 dp=4 ep=32 sp vp microbatches=8 checkpoint=selective", 128, 128},
        Case{"moe_30b", "pp=4 tp=8 dp=4 ep=16 etp=2 sp vp zero=3 microbatches=8", 128, 128},
        Case{"fine_grained", "pp=4 tp=4 dp=8 ep=32 sp vp zero=1 checkpoint=full microbatches=8", 64, 128}),
    [](const auto& info) { return absl::StrCat(info.param.model, "_", info.param.ranks, "_", info.index); });

// Equal layers are placed by the decisions for one of them, so depth costs next to nothing to place.
TEST(RealSizes, SixtyLayersTakeTheDecisionsOfTwenty) {
  ASSERT_OK_AND_ASSIGN(model::ModelConfig model,
                       model::LoadModelConfig("testdata/models/mixtral_8x22b.textproto"));
  std::map<std::string, int64_t> counts[2];
  for (const int64_t layers : {20, 60}) {
    model.set_num_layers(layers);
    ASSERT_OK_AND_ASSIGN(
        const Compiled c,
        CompileModel(model, "pp=4 tp=8 dp=32 ep=8 sp vp zero=1 checkpoint=selective microbatches=16", 512));
    EXPECT_EQ(c.plan.mesh().num_ranks(), 1024);
    for (const passes::PassResult& pass : c.passes) {
      if (pass.name == "shard") counts[layers == 60] = pass.counts;
    }
  }
  EXPECT_GT(counts[0]["decisions"], 50);
  EXPECT_EQ(counts[0]["decisions"], counts[1]["decisions"]);
  EXPECT_GT(counts[1]["remembered"], 2 * counts[0]["remembered"]);
}

// What compilation costs does not depend on the sizes of the axes.
TEST(RealSizes, WorkDoesNotGrowWithTheAxes) {
  ASSERT_OK_AND_ASSIGN(model::ModelConfig model,
                       model::LoadModelConfig("testdata/models/fine_grained.textproto"));
  model.set_num_layers(3);
  const auto nodes = [&](const std::string& strategy, int64_t global_batch, int64_t experts) -> int64_t {
    model.set_num_experts(experts);
    absl::StatusOr<Compiled> c = CompileModel(model, strategy, global_batch);
    EXPECT_TRUE(c.ok()) << c.status();
    int64_t n = 0;
    if (c.ok()) {
      for (const auto& f : c->plan.module().functions()) n += f->num_nodes();
    }
    return n;
  };
  const int64_t few = nodes("tp=2 dp=8 ep=4 sp vp zero=1 microbatches=2", 32, 64);
  EXPECT_GT(few, 0);
  EXPECT_EQ(nodes("tp=2 dp=512 ep=4 sp vp zero=1 microbatches=2", 2048, 64), few);  // dp with the batch
  // ep with the experts; another placement may become the cheapest.
  EXPECT_LE(nodes("tp=2 dp=512 ep=256 sp vp zero=1 microbatches=2", 2048, 4096), few);
}

}  // namespace
}  // namespace moe::plan
