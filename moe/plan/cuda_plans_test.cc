// Plans for GPUs are made on any machine: compiled, certified and stored, with the scratch memory that the
// CUDA kernels ask for, and a CUDA kernel for every node.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/cost/targets.h"
#include "moe/kernels/kernel.h"
#include "moe/model/config.h"
#include "moe/model/transformer.h"
#include "moe/plan/compile.h"
#include "moe/plan/plan.h"
#include "moe/runtime/local.h"

namespace moe::plan {
namespace {

absl::StatusOr<Compiled> CompileFor(const std::string& target, const model::ModelConfig& model,
                                    const std::string& text, int64_t global_batch,
                                    const std::set<std::string>& libraries = {}) {
  ASSIGN_OR_RETURN(const strategy::Strategy strategy, strategy::ParseStrategy(text));
  model::BuildOptions build;
  build.global_batch = global_batch;
  build.microbatches = strategy.microbatches;
  ASSIGN_OR_RETURN(std::unique_ptr<Module> module, model::BuildModel(model, build));
  CompileOptions options;
  ASSIGN_OR_RETURN(options.target, cost::NamedTarget(target));
  options.target.libraries = libraries;
  ASSIGN_OR_RETURN(const kernels::Backend backend, runtime::BackendOf(options.target));
  options.workspace = runtime::WorkspaceHook(backend, strategy.overload);
  return Compile(std::move(module), strategy, options);
}

struct Case {
  const char* target;
  const char* model;
  const char* strategy;
  int64_t global_batch, ranks;
};

class CudaPlansTest : public ::testing::TestWithParam<Case> {};

TEST_P(CudaPlansTest, CompileWithoutCuda) {
  const Case& c = GetParam();
  ASSERT_OK_AND_ASSIGN(const model::ModelConfig model,
                       model::LoadModelConfig(absl::StrCat("testdata/models/", c.model, ".textproto")));
  ASSERT_OK_AND_ASSIGN(const Compiled compiled, CompileFor(c.target, model, c.strategy, c.global_batch));
  const Plan& plan = compiled.plan;
  EXPECT_EQ(plan.mesh().num_ranks(), c.ranks);
  EXPECT_EQ(compiled.passes.back().name, "certify");

  std::set<std::string> missing, with_workspace;
  ASSERT_OK_AND_ASSIGN(const strategy::Strategy strategy, strategy::ParseStrategy(c.strategy));
  for (const auto& f : plan.module().functions()) {
    for (const std::unique_ptr<Node>& n : f->body()) {
      if (absl::StartsWith(n->op_name(), "comm.")) continue;
      const absl::StatusOr<int64_t> bytes =
          runtime::NodeWorkspace(*n, plan.mesh(), kernels::Backend::kCuda, strategy.overload);
      if (!bytes.ok()) missing.insert(std::string(bytes.status().message()));
      if (bytes.ok() && *bytes > 0) with_workspace.insert(n->op_name());
    }
  }
  EXPECT_EQ(missing, std::set<std::string>());
  EXPECT_TRUE(with_workspace.count("math.einsum") && with_workspace.count("nn.attention_grad"));

  const std::string bytes = SerializePlan(plan);
  ASSERT_OK_AND_ASSIGN(const Plan read, ParsePlan(bytes));  // certifies again
  EXPECT_EQ(read.target.name, c.target);
  EXPECT_EQ(read.target.device, "cuda");
  EXPECT_TRUE(read.target.overlaps);
  EXPECT_EQ(SerializePlan(read), bytes);
}

INSTANTIATE_TEST_SUITE_P(
    Models, CudaPlansTest,
    ::testing::Values(Case{"h100", "mixtral_8x22b",
                           "pp=8 tp=8 dp=16 ep=8 sp vp zero=1 checkpoint=selective bf16 microbatches=16", 256,
                           1024},
                      Case{"h200", "moe_10b", "pp=4 dp=4 ep=4 zero=1 bf16 microbatches=8", 64, 16},
                      Case{"a100", "fine_grained",
                           "pp=4 tp=4 dp=8 ep=32 sp vp zero=1 checkpoint=full microbatches=8", 64, 128}),
    [](const auto& info) { return absl::StrCat(info.param.target, "_", info.param.model); });

// A target decides: scratch memory of its own kernels, and whether collectives run beside compute.
TEST(TargetsTest, MakeOtherPlans) {
  ASSERT_OK_AND_ASSIGN(model::ModelConfig model, model::LoadModelConfig("testdata/models/moe_10b.textproto"));
  model.set_num_layers(2);
  ASSERT_OK_AND_ASSIGN(const Compiled cpu, CompileFor("cpu", model, "dp=4 ep=4 zero=1 bf16", 16));
  ASSERT_OK_AND_ASSIGN(const Compiled gpu, CompileFor("h100", model, "dp=4 ep=4 zero=1 bf16", 16));
  EXPECT_EQ(cpu.plan.target.name, "cpu");
  const auto started = [](const Plan& plan) {
    int n = 0;
    for (const auto& f : plan.module().functions()) n += static_cast<int>(f->NodesOf("comm.done").size());
    return n;
  };
  EXPECT_EQ(started(cpu.plan), 0);
  EXPECT_GT(started(gpu.plan), 0);
}

// A plan with attention by cuDNN has its scratch memory, without a cuDNN: one head's matrix of the backward
// at least. It knows whose kernels it was made for.
TEST(TargetsTest, CudnnIsInThePlan) {
  ASSERT_OK_AND_ASSIGN(model::ModelConfig model, model::LoadModelConfig("testdata/models/moe_10b.textproto"));
  model.set_num_layers(2);
  ASSERT_OK_AND_ASSIGN(const Compiled own, CompileFor("h100", model, "dp=4 ep=4 zero=1 bf16", 16));
  ASSERT_OK_AND_ASSIGN(const Compiled cudnn,
                       CompileFor("h100", model, "dp=4 ep=4 zero=1 bf16", 16, {"cudnn"}));
  const auto scratch = [](const Plan& plan) {
    int64_t most = 0;
    for (const auto& f : plan.module().functions()) {
      for (const Node* n : f->NodesOf("nn.attention_grad")) {
        const FunctionMemory& memory = plan.program.memory.functions.at(f->name());
        most = std::max(most, memory.workspace.at(n->result_name()).bytes);
      }
    }
    return most;
  };
  EXPECT_GT(scratch(cudnn.plan) - scratch(own.plan), 2 * model.seq_length() * model.seq_length());
  ASSERT_OK_AND_ASSIGN(const Plan read, ParsePlan(SerializePlan(cudnn.plan)));
  EXPECT_EQ(read.target.libraries, std::set<std::string>{"cudnn"});
}

TEST(TargetsTest, UnknownOnesAreNamed) {
  ExpectError(cost::NamedTarget("h1000"), absl::StatusCode::kInvalidArgument, "h1000",
              "cpu, a100, h100, h200");
  cost::Target t;
  t.device = "tpu";
  ExpectError(runtime::BackendOf(t), absl::StatusCode::kInvalidArgument, "tpu");
}

}  // namespace
}  // namespace moe::plan
