// From a model and a strategy to what a test looks at: the program that all passes, or some, leave behind.
//
//   ASSERT_OK_AND_ASSIGN(const Program program, CompileProgram(SmallMoe(), "pp=2 dp=2 ep=2 microbatches=4"));
//   ASSERT_OK_AND_ASSIGN(const Program placed, CompileProgram(SmallMoe(), "tp=2 sp", {.pipeline = "autodiff,shard"}));
//
// The default pipeline leaves a program that runtime::Executor runs. The caller owns the program, which refers to
// nothing outside. Tests on what a plan keeps beside its program call plan::Compile themselves.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/ir/program.h"
#include "moe/kernels/kernel.h"
#include "moe/model/config.h"
#include "moe/passes/pipeline.h"
#include "moe/strategy/strategy.h"

namespace moe::testing {

struct CompileProgramOptions {
  int64_t global_batch = 8;  // samples of a step; the strategy's microbatches and dp divide it
  double clip_grad = 1;
  std::string pipeline;                               // "": the default one
  kernels::Backend backend = kernels::Backend::kCpu;  // whose kernels' scratch is planned
  std::set<std::string> libraries;                    // of the target
  passes::PipelineOptions passes;
};

// Errors: words that are not a strategy, a model or a strategy that cannot be built, and what a pass refuses.
absl::StatusOr<Program> CompileProgram(const model::ModelConfig& config, const strategy::Strategy& strategy,
                                       const CompileProgramOptions& options = {});
absl::StatusOr<Program> CompileProgram(const model::ModelConfig& config, absl::string_view words,
                                       const CompileProgramOptions& options = {});

}  // namespace moe::testing
