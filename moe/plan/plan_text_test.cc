// What `schedule`, `plan-memory` and `certify` leave, as text: CHECK lines against the text form of plans.
#include <gtest/gtest.h>

#include <string>

#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/model/config.h"
#include "moe/model/transformer.h"
#include "moe/plan/compile.h"
#include "moe/plan/plan.h"
#include "moe/testing/check_lines.h"

namespace moe::plan {
namespace {

absl::StatusOr<std::string> PlanText(const std::string& words, const CompileOptions& options = {}) {
  ASSIGN_OR_RETURN(const strategy::Strategy strategy, strategy::ParseStrategy(words));
  ASSIGN_OR_RETURN(const model::ModelConfig config,
                   model::LoadModelConfig("testdata/models/small_test.textproto"));
  ASSIGN_OR_RETURN(std::unique_ptr<Module> module,
                   model::BuildModel(config, {.global_batch = 8, .microbatches = strategy.microbatches}));
  ASSIGN_OR_RETURN(const Compiled c, Compile(std::move(module), strategy, options));
  return PlanToText(c.plan);
}

void ExpectLines(const std::string& words, const std::string& lines) {
  SCOPED_TRACE(words);
  ASSERT_OK_AND_ASSIGN(const std::string text, PlanText(words));
  const absl::Status matched = testing::CheckLines(lines, text);
  EXPECT_TRUE(matched.ok()) << std::string(matched.message()).substr(0, 8000);
}

TEST(PlanText, Schedule) {
  ExpectLines("pp=2 microbatches=4", R"(
    // CHECK: schedule 1f1b, 4 microbatches, chunks on stages 0 1
    // CHECK: eval stage 0: reset, F0.0{{.*}} send act.0 mb0 -> stage 1{{.*}} F0.3{{.*}} send act.0 mb3 -> stage 1
    // CHECK-NEXT: eval stage 1: reset, recv act.0 mb0 <- stage 0{{.*}} F1.0{{.*}} F1.3{{.*}} report
    // CHECK: train_step stage 0: reset, F0.0 [residuals 0], send act.0 mb0 -> stage 1 [{{.}}], F0.1 [residuals 1]{{.*}} recv grad.0 mb0 <- stage 1 [{{.}}], B0.0 [residuals 0], F0.2 [residuals 0]{{.*}} B0.3 [residuals 1], update, report
    // CHECK-NEXT: train_step stage 1: reset, recv act.0 mb0 <- stage 0 [{{.}}], F1.0 [residuals 0]{{.*}} B1.0 [residuals 0], send grad.0 mb0 -> stage 0{{.*}} update, report
  )");
  ExpectLines("pp=2 microbatches=2 schedule=gpipe", R"(
    // CHECK: train_step stage 0: reset, F0.0 [residuals 0]{{.*}} F0.1 [residuals 1]{{.*}} B0.0 [residuals 0]{{.*}} B0.1 [residuals 1], update, report
  )");
  ExpectLines("pp=2 microbatches=4 schedule=zb-h1", R"(
    // CHECK: train_step stage 1: {{.*}}F1.0 [residuals 0]{{.*}} I1.0 [residuals 0] [weight residuals 0], send grad.0 mb0 -> stage 0{{.*}} W1.0 [residuals 0] [weight residuals 0]{{.*}} W1.3{{.*}} update, report
  )");
}

TEST(PlanText, Memory) {
  // One set of residuals for each microbatch in flight: p - s under 1F1B, all of them under GPipe.
  ExpectLines("pp=2 microbatches=4", R"(
    // CHECK: memory stage 0: peak {{[0-9]+}} bytes = state [[STATE:[0-9]+]] + input {{[0-9]+}} + residual [[ALL:[0-9]+]] +
    // CHECK-NEXT: residuals of chunk 0: 2 x {{[0-9]+}} at 0
    // CHECK: boundary act.0: {{[12]}} x 8192 at {{[0-9]+}}
    // CHECK: state adam.m.embedding: 16384 at {{[0-9]+}}
    // CHECK: state embedding: 16384 at {{[0-9]+}}
    // CHECK: memory stage 1: peak
    // CHECK-NEXT: residuals of chunk 1: 1 x {{[0-9]+}} at 0
    // CHECK: buffers @backward0: frame [[FRAME:[0-9]+]], live at most {{[0-9]+}}
    // CHECK: %labels: input {{[0-9]+}} + 128
    // CHECK: buffers @forward0: frame {{[0-9]+}}, live at most
    // CHECK: %{{[a-z0-9_.]+}}: boundary 0 + 8192
  )");
  ExpectLines("pp=2 microbatches=4 schedule=gpipe", R"(
    // CHECK: memory stage 0:
    // CHECK-NEXT: residuals of chunk 0: 4 x
    // CHECK: memory stage 1:
    // CHECK-NEXT: residuals of chunk 1: 4 x
  )");
  // Sharded states take their share.
  ExpectLines("dp=2 zero=3", R"(
    // CHECK: state adam.m.embedding: 8192 at
    // CHECK: state embedding: 8192 at
    // CHECK: state grad.embedding: 8192 at
  )");
}

TEST(PlanText, Certificate) {
  ExpectLines("pp=2 dp=2 microbatches=4", R"(
    // CHECK: note plan-memory: peak per rank
    // CHECK: note certify: {{[0-9,]+}} actions on 4 ranks: no cyclic wait, each action once, every node covered
  )");
  CompileOptions options;
  options.memory_limit = 1000;
  const absl::StatusOr<std::string> refused = PlanText("pp=2 microbatches=4", options);
  ASSERT_FALSE(refused.ok());
  const absl::Status matched = testing::CheckLines(R"(
    // CHECK: certify: stage {{[01]}} (rank {{[01]}}): the peak of {{.*}} is over the limit of 0.98 KiB
  )",
                                                   refused.status().message());
  EXPECT_TRUE(matched.ok()) << matched.message();
}

}  // namespace
}  // namespace moe::plan
