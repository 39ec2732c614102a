#include "moe/plan/compile.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/passes/builtin.h"
#include "moe/strategy/fold.h"

namespace moe::plan {

absl::StatusOr<Compiled> Compile(std::unique_ptr<Module> module, const strategy::Strategy& strategy,
                                 const CompileOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const int64_t microbatches = AttrInt(module->attributes(), "microbatches", strategy.microbatches);
  if (microbatches != strategy.microbatches) {
    return absl::InvalidArgumentError(absl::StrCat("the model was built for ", microbatches,
                                                   " microbatches per step, the strategy has ",
                                                   strategy.microbatches));
  }
  ASSIGN_OR_RETURN(module->mesh(), strategy::FoldMesh(strategy, AttrInt(module->attributes(), "kv_heads"),
                                                      options.alongside));
  Compiled out;
  out.plan.program.module = std::move(module);
  out.plan.strategy = strategy;
  out.plan.target = options.target;
  out.plan.model_text = options.model_text;
  out.plan.train_text = options.train_text;
  out.plan.pipeline = options.pipeline.empty() ? passes::DefaultPipeline() : options.pipeline;
  passes::PassContext context;
  context.strategy = strategy;
  context.target = options.target;
  context.workspace = options.workspace;
  context.memory_limit = options.memory_limit;
  context.layout = options.layout;
  ASSIGN_OR_RETURN(out.passes, passes::RunPipeline(passes::Passes(), out.plan.pipeline, out.plan.program,
                                                   context, options.passes));
  out.milliseconds =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return out;
}

}  // namespace moe::plan
