#include "moe/passes/builtin.h"

#include "moe/passes/common_subexpressions.h"
#include "moe/passes/pipeline.h"
#include "moe/passes/remove_dead_nodes.h"

namespace moe {

// Sorted by name, one line each (or name, doc, function on lines of their own).
void RegisterBuiltinPasses(PassRegistry* registry) {
  registry->Add({"common-subexpressions", "Merges nodes of one phase that compute the same.",
                 ForEachFunction(MergeCommonSubexpressions)});
  registry->Add(
      {"remove-dead-nodes", "Removes nodes whose results nobody uses.", ForEachFunction(RemoveDeadNodes)});
}

PassRegistry& Passes() {
  static const bool registered = [] {
    RegisterBuiltinPasses(&RegisteredPasses());
    return true;
  }();
  (void)registered;
  return RegisteredPasses();
}

std::string DefaultPipeline() {
  return "autodiff,remove-dead-nodes,common-subexpressions,partition-stages,shard,insert-collectives,"
         "checkpoint,fuse,"
         "split-phases,schedule,plan-memory";
}

absl::StatusOr<std::vector<PassResult>> RunPipeline(absl::string_view pipeline, Program& program,
                                                    PassContext context, const PipelineOptions& options) {
  return RunPipelineOf(Passes(), pipeline, program, std::move(context), options);
}

}  // namespace moe
