#include "tools/opt.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/cost/targets.h"
#include "moe/ir/text.h"
#include "moe/ir/verifier.h"
#include "moe/passes/builtin.h"
#include "moe/strategy/strategy.h"

namespace moe::tools {

absl::StatusOr<std::string> Optimize(absl::string_view text, const std::string& file,
                                     const OptOptions& options) {
  passes::PassContext context;
  if (!options.strategy.empty()) {
    absl::StatusOr<strategy::Strategy> strategy = strategy::ParseStrategy(options.strategy);
    if (!strategy.ok()) return Annotate(strategy.status(), "--strategy");
    context.strategy = *std::move(strategy);
  }
  if (!options.target.empty()) {
    ASSIGN_OR_RETURN(context.target, cost::NamedTarget(options.target));
  }
  absl::StatusOr<std::unique_ptr<Module>> module = ParseModule(text);
  if (!module.ok()) {
    return absl::Status(module.status().code(), absl::StrCat(file, ":", module.status().message()));
  }
  if (!options.pipeline.verify) {  // the passes rely on sound input
    RETURN_IF_ERROR(Annotate(Verify(**module, {.unplaced_nodes = true}), file));
  }
  Program program;
  program.module = *std::move(module);
  absl::StatusOr<std::vector<passes::PassResult>> results =
      passes::RunPipeline(passes::Passes(), options.passes, program, std::move(context), options.pipeline);
  if (!results.ok()) return Annotate(results.status(), file);
  if (options.results != nullptr) *options.results = *std::move(results);
  return PrintModule(*program.module);
}

std::string DescribePasses() {
  std::string out;
  for (const passes::PassDef* pass : passes::Passes().All())
    absl::StrAppendFormat(&out, "%-26s %s\n", pass->name, pass->doc);
  absl::StrAppend(&out, "\nThe default pipeline, in this order:\n");
  for (const passes::DefaultStep& step : passes::DefaultSteps()) {
    absl::StrAppendFormat(&out, "%-26s %s\n", step.step, step.reason);
  }
  return out;
}

}  // namespace moe::tools
