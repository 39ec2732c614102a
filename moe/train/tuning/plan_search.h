// Plans for a run: one for each length of its samples, over one state. Where memory is limited, or lengths
// differ, what the configuration leaves open is chosen here.
//
//   ASSIGN_OR_RETURN(const PlannedRun run, PlanRun(config, options));
//   for (const PlannedBucket& b : run.buckets) ...   // b.plans[b.first].compiled.plan.program
//   for (const std::string& line : run.said) std::cout << line;
//
// One length: the configuration as it is, if its plan takes at most 90% of the memory limit. Otherwise the
// microbatch is made smaller, to the next divisor of the samples of a rank, until it does; then, if
// `allow_shorter_sequences`, the sequence is halved. Everything that was changed is said.
//
// Several lengths (`length_buckets`): a step has about as many tokens for each, and the plan of a length is
// the one with the least time by the cost model among those within the limit, over
//   - the ranks of a stage's tensor, context and data parallelism: smaller tensor parallelism than configured,
//     and any context parallelism, with the data ranks making up for it (pipeline and expert sizes stay);
//   - microbatches: the configured tokens of one, and half and a quarter of them;
//   - recomputation: as configured, and `full` where that does not fit.
// Parameters and moments stay where the configuration's own plan has them (ir/state_layout.h), so a length
// that uses fewer tensor ranks gathers weights before use, and the plan's cost says whether that is worth it.
//
// `adaptive_micro_batch_size` keeps the other sizes' plans as well, for MicroBatchTuner.
//
// Results own their plans. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "moe/ir/graph.h"
#include "moe/plan/compile.h"
#include "moe/train/config/config.h"

namespace moe::train {

struct PlannedStep {
  RunConfig config;  // the run's, with this length, batch and strategy
  plan::Compiled compiled;
  double predicted_seconds = 0;  // of a step, by the cost model
  int64_t peak_bytes() const;    // of the fullest rank
};

struct PlannedBucket {
  std::vector<PlannedStep> plans;  // several only with adaptive_micro_batch_size, by microbatch size
  int first = 0;                   // the one to start with
  int tried = 0;                   // plans compiled to find it
  double flops_per_step = 0;
};

struct PlannedRun {
  std::vector<PlannedBucket> buckets;  // by length, ascending
  std::vector<std::string> said;       // what was changed or chosen, a line each
};

// The logical module of a configuration.
absl::StatusOr<std::unique_ptr<Module>> BuildLogical(const RunConfig& resolved);

// Whether the model and strategy of a configuration compile, for ValidateRunConfig to propose what does.
bool CompilesInFact(const RunConfig& resolved);

// The configuration for samples of another length: as many samples as have the tokens of a step, in multiples
// of the data ranks.
RunConfig ForLength(const RunConfig& resolved, int64_t length);

// `options` as for one plan; `chosen` is called for the options of each plan that is kept (to dump it
// somewhere), and may be null. ResourceExhausted, with the least that was reached, if nothing fits the limit;
// FailedPrecondition for a pipeline whose plan cannot be trained (ir/runnable.h).
absl::StatusOr<PlannedRun> PlanRun(
    const RunConfig& resolved, const plan::CompileOptions& options,
    const std::function<void(const RunConfig& config, plan::CompileOptions* options)>& chosen = nullptr);

}  // namespace moe::train
