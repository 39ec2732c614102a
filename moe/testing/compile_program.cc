#include "moe/testing/compile_program.h"

#include <memory>
#include <utility>

#include "moe/base/status.h"
#include "moe/model/transformer.h"
#include "moe/plan/compile.h"
#include "moe/runtime/local.h"

namespace moe::testing {

absl::StatusOr<Program> CompileProgram(const model::ModelConfig& config, const strategy::Strategy& strategy,
                                       const CompileProgramOptions& options) {
  model::BuildOptions build;
  build.global_batch = options.global_batch;
  build.microbatches = strategy.microbatches;
  build.clip_grad = options.clip_grad;
  ASSIGN_OR_RETURN(std::unique_ptr<Module> module,
                   model::BuildModel(model::ResolveModelConfig(config), build));
  plan::CompileOptions compile;
  compile.pipeline = options.pipeline;
  compile.passes = options.passes;
  compile.target.libraries = options.libraries;
  compile.workspace = runtime::WorkspaceHook(options.backend, strategy.overload);
  ASSIGN_OR_RETURN(plan::Compiled compiled, plan::Compile(std::move(module), strategy, compile));
  return std::move(compiled.plan.program);
}

absl::StatusOr<Program> CompileProgram(const model::ModelConfig& config, absl::string_view words,
                                       const CompileProgramOptions& options) {
  ASSIGN_OR_RETURN(const strategy::Strategy strategy, strategy::ParseStrategy(words));
  return CompileProgram(config, strategy, options);
}

}  // namespace moe::testing
