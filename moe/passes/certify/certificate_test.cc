// What the certificate is worth: a thousand random edits of a plan, each refused by certify or executed,
// under a watchdog, with the results of the plan as it was.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/state.h"
#include "moe/model/transformer.h"
#include "moe/passes/certify/certify.h"
#include "moe/plan/compile.h"
#include "moe/plan/plan.h"
#include "moe/runtime/executor.h"
#include "moe/runtime/local.h"
#include "moe/testing/plan_edits.h"
#include "moe/testing/random_inputs.h"
#include "moe/testing/sharded_model.h"

namespace moe::passes {
namespace {

struct Results {
  std::vector<runtime::Reports> reports;
  std::map<std::string, std::vector<double>> parameters;
};

// An evaluation and two training steps.
absl::StatusOr<Results> Execute(const plan::Plan& plan) {
  runtime::ExecutorOptions options;
  options.timeout = absl::Seconds(20);
  options.poison = true;
  ASSIGN_OR_RETURN(std::unique_ptr<runtime::Executor> executor,
                   runtime::Executor::Create(plan.program, options));
  RETURN_IF_ERROR(executor->InitializeState(5));
  Results results;
  for (int step = 1; step <= 2; ++step) {
    testing::RandomInputOptions random;
    random.seed = 3;
    ASSIGN_OR_RETURN(const runtime::StepInputs inputs, testing::RandomInputs(plan.module(), random, step));
    if (step == 1) {
      ASSIGN_OR_RETURN(runtime::Reports reports, executor->EvalStep(inputs));
      results.reports.push_back(std::move(reports));
    }
    ASSIGN_OR_RETURN(runtime::Reports reports, executor->TrainStep(inputs));
    results.reports.push_back(std::move(reports));
  }
  for (const auto& s : plan.module().states()) {
    if (AttrString(s->attributes, "kind") != "parameter") continue;
    ASSIGN_OR_RETURN(results.parameters[s->name], executor->ReadState(s->name));
  }
  return results;
}

std::string Difference(const std::map<std::string, std::vector<double>>& got,
                       const std::map<std::string, std::vector<double>>& want) {
  for (const auto& [name, values] : want) {
    const auto it = got.find(name);
    if (it == got.end() || it->second.size() != values.size()) return absl::StrCat(name, " is missing");
    for (size_t i = 0; i < values.size(); ++i) {
      const double error = std::abs(it->second[i] - values[i]);
      if (!(error <= 1e-9 * std::max(1.0, std::abs(values[i])))) {
        return absl::StrCat(name, "[", i, "] is ", it->second[i], ", not ", values[i]);
      }
    }
  }
  return "";
}

std::string Difference(const Results& got, const Results& want) {
  for (size_t i = 0; i < want.reports.size(); ++i) {
    const std::string d = Difference(got.reports[i], want.reports[i]);
    if (!d.empty()) return absl::StrCat("run ", i, ", report ", d);
  }
  return Difference(got.parameters, want.parameters);
}

class CertificateTest : public ::testing::TestWithParam<int> {};

constexpr const char* kStrategies[] = {"pp=2 tp=2 etp=2 sp microbatches=4 checkpoint=selective",
                                       "pp=2 dp=2 ep=2 zero=1 microbatches=4",
                                       "pp=2 dp=2 ep=2 zero=1 microbatches=4 overlap=on bucket=8192",
                                       "tp=2 dp=2 ep=2 etp=2 sp zero=3 microbatches=2 overlap=on"};
constexpr int kEdits = 1000, kShards = 4;

TEST_P(CertificateTest, EditsAreRefusedOrExecuteCorrectly) {
  ASSERT_OK_AND_ASSIGN(const strategy::Strategy strategy, strategy::ParseStrategy(kStrategies[GetParam()]));
  model::BuildOptions build;
  build.global_batch = 8;
  build.microbatches = strategy.microbatches;
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<Module> module,
                       model::BuildModel(model::ResolveModelConfig(testing::SmallDropless()), build));
  plan::CompileOptions compile;
  compile.workspace = runtime::WorkspaceHook(kernels::Backend::kCpu, strategy.overload);
  ASSERT_OK_AND_ASSIGN(const plan::Compiled compiled, plan::Compile(std::move(module), strategy, compile));
  ASSERT_OK_AND_ASSIGN(const Results want, Execute(compiled.plan));

  int applied = 0, refused = 0;
  // Edits that do not apply to this plan do not count.
  for (uint64_t seed = 1'000'000 * GetParam(); applied < kEdits / kShards; ++seed) {
    plan::Plan plan = plan::ClonePlan(compiled.plan);
    const std::string what = testing::RandomEdit(&plan, seed);
    if (what.empty()) continue;
    ++applied;
    if (!Certify(plan.program, {.overload = plan.strategy.overload}).ok()) {
      ++refused;
      continue;
    }
    SCOPED_TRACE(absl::StrCat("seed ", seed, ": ", what));
    const absl::StatusOr<Results> got = Execute(plan);
    ASSERT_OK(got);
    EXPECT_EQ(Difference(*got, want), "");
  }
  RecordProperty("refused", refused);
  RecordProperty("executed", applied - refused);
  EXPECT_GT(refused, applied / 2);
}

INSTANTIATE_TEST_SUITE_P(Shards, CertificateTest, ::testing::Range(0, kShards));

}  // namespace
}  // namespace moe::passes
