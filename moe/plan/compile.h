// Compile: a logical module and a strategy become a Plan, by the default pipeline. What all tools use.
//
//   ASSIGN_OR_RETURN(Compiled c, Compile(*std::move(module), strategy, options));
//   for (const passes::PassResult& r : c.passes) ...   // the table of what each pass did
//   RETURN_IF_ERROR(SavePlan(c.plan, folder));
//
// One thread at a time; the results own all they hold.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "moe/passes/pipeline.h"
#include "moe/plan/plan.h"

namespace moe::plan {

struct CompileOptions {
  std::string pipeline;  // "": DefaultPipeline()
  passes::PipelineOptions passes;
  cost::Target target;
  std::function<int64_t(const Node&, const Mesh&)> workspace;  // see PassContext
  int64_t memory_limit = 0;
  const StateLayout* layout = nullptr;        // of a plan whose state this one shares
  std::vector<strategy::Strategy> alongside;  // strategies of all plans that share the state; see FoldMesh
  std::string model_text, train_text;         // kept in the plan
};

struct Compiled {
  Plan plan;
  std::vector<passes::PassResult> passes;
  double milliseconds = 0;
};

// Gives the module the strategy's mesh and runs the pipeline. Errors: a strategy that does not fold, a number
// of microbatches other than the module's, and whatever a pass refuses.
absl::StatusOr<Compiled> Compile(std::unique_ptr<Module> module, const strategy::Strategy& strategy,
                                 const CompileOptions& options = {});

}  // namespace moe::plan
