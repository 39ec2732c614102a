// A model of a hundred million parameters on eight virtual devices against the same on one, for a few steps
// in f32: sizes at which block edges, workspace bounds and sums of many terms show what small models hide.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "moe/base/status_matchers.h"
#include "moe/ir/state.h"
#include "moe/model/config.h"
#include "moe/model/transformer.h"
#include "moe/passes/builtin.h"
#include "moe/passes/pipeline.h"
#include "moe/plan/compile.h"
#include "moe/runtime/executor.h"
#include "moe/runtime/interpreter.h"
#include "moe/runtime/local.h"
#include "moe/testing/random_inputs.h"

namespace moe::testing {
namespace {

constexpr int kSteps = 3;
constexpr uint64_t kSeed = 11;

double Norm(const std::vector<double>& x) {
  double s = 0;
  for (const double v : x) s += v * v;
  return std::sqrt(s);
}

TEST(LargeModel, TrainsAsOnOneDevice) {
  ASSERT_OK_AND_ASSIGN(model::ModelConfig model,
                       model::LoadModelConfig("testdata/models/moe_100m.textproto"));
  model.set_seq_length(32);
  EXPECT_GT(model::CountParameters(model).total, 90'000'000);
  ASSERT_OK_AND_ASSIGN(const strategy::Strategy strategy,
                       strategy::ParseStrategy("pp=2 tp=2 dp=2 ep=4 sp vp zero=1 microbatches=2"));
  model::BuildOptions build;
  build.global_batch = 4;
  build.microbatches = strategy.microbatches;
  build.clip_grad = 0.5;

  std::vector<runtime::StepInputs> inputs;
  std::vector<double> losses;
  std::vector<runtime::Decisions> decisions(kSteps);
  std::map<std::string, std::vector<float>> gradients;
  double global_norm = 0;
  {
    Program program;
    ASSERT_OK_AND_ASSIGN(program.module, model::BuildModel(model, build));
    ASSERT_OK(passes::RunPipeline(passes::Passes(), "autodiff", program, passes::PassContext{}));
    runtime::InterpreterOptions options;
    options.backend = kernels::Backend::kCpu;  // the naive kernels would take an hour
    options.poison = false;
    ASSERT_OK_AND_ASSIGN(std::unique_ptr<runtime::Interpreter> one,
                         runtime::Interpreter::Create(*program.module, options));
    ASSERT_OK(one->InitializeState(kSeed));
    for (int step = 0; step < kSteps; ++step) {
      RandomInputOptions random;
      random.learning_rate = 1e-3;
      ASSERT_OK_AND_ASSIGN(runtime::StepInputs in, RandomInputs(*program.module, random, step + 1));
      one->RecordDecisions(&decisions[step]);
      ASSERT_OK_AND_ASSIGN(runtime::Reports reports, one->TrainStep(in));
      losses.push_back(reports.at("lm loss").at(0));
      inputs.push_back(std::move(in));
      if (step > 0) continue;
      for (const auto& s : program.module->states()) {
        if (AttrString(s->attributes, "kind") != "gradient") continue;
        ASSERT_OK_AND_ASSIGN(const std::vector<double> g, one->ReadState(s->name));
        gradients[s->name].assign(g.begin(), g.end());
        global_norm += Norm(g) * Norm(g);
      }
      global_norm = std::sqrt(global_norm);
    }
  }

  ASSERT_OK_AND_ASSIGN(std::unique_ptr<Module> module, model::BuildModel(model, build));
  plan::CompileOptions options;
  options.workspace = runtime::WorkspaceHook(kernels::Backend::kCpu, strategy.overload);
  ASSERT_OK_AND_ASSIGN(const plan::Compiled compiled, plan::Compile(std::move(module), strategy, options));
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<runtime::Executor> plan,
                       runtime::Executor::Create(compiled.plan.program, {}));
  ASSERT_OK(plan->InitializeState(kSeed));
  for (int step = 0; step < kSteps; ++step) {
    plan->ReplayDecisions(&decisions[step]);
    ASSERT_OK_AND_ASSIGN(runtime::Reports reports, plan->TrainStep(inputs[step]));
    EXPECT_NEAR(reports.at("lm loss").at(0), losses[step], 1e-4 * losses[step]) << "step " << step;
    if (step > 0) continue;
    for (const auto& [name, want] : gradients) {
      ASSERT_OK_AND_ASSIGN(std::vector<double> got, plan->ReadState(name));
      const double scale = std::max(Norm(std::vector<double>(want.begin(), want.end())), 1e-6 * global_norm);
      ASSERT_EQ(got.size(), want.size());
      for (size_t i = 0; i < got.size(); ++i) got[i] -= want[i];
      EXPECT_LT(Norm(got) / scale, 2e-5) << name;  // both sides round
    }
  }
  std::vector<int64_t> planned;
  for (const StageMemory& s : compiled.plan.program.memory.stages) planned.push_back(s.peak_bytes());
  EXPECT_EQ(plan->MeasuredPeakPerStage(), planned);
}

}  // namespace
}  // namespace moe::testing
