// validate_passes: a hook for the pipeline that runs the program before and after each pass on virtual
// devices and names the first pass, node and rank that differ.
//
//   PassValidator validator({.seed = 1});
//   passes::PipelineOptions options;
//   options.validate = validator.Hook();
//   RETURN_IF_ERROR(
//       passes::RunPipeline(passes::Passes(), passes::DefaultPipeline(), program, context, options).status());
//   // Internal: pass shard changed the results: %h_3 = math.einsum in @chunk0 (layers.0.mlp), microbatch 0:
//   // element 17 on rank 3 is 0.25, before the pass 0.5
//
// Both run one step in lockstep (cluster_step.h), with the same random data and initial states. What
// leaves functions must agree: states after the step, reports, boundary values. If something differs, both
// run again and the values of equal name are compared in order of execution, so the culprit is where the
// difference begins and not where it comes out. f32, bf16 and f16 run as f64, and no exchange is compressed:
// what differs then is wrong and not rounded, and no routing decision flips.
//
//   - autodiff: gradients are held against differences of the losses, parameter by parameter.
//   - a pass that leaves a complete plan (plan-memory): the executor runs it, with its own schedule, queues
//     and arena. In the plan's own dtypes and wire formats it must give what the lockstep run of them gives,
//     and with the decisions of the run in f64 its losses must be near that one's.
//
// Costs two steps of the whole cluster per pass, so it is for small batches. The validator keeps the last
// program's results, and outlives the hook. One thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "moe/ir/program.h"
#include "moe/kernels/kernel.h"

namespace moe::testing {

struct ValidateOptions {
  uint64_t seed = 1;
  kernels::Backend backend = kernels::Backend::kCpu;
  double masked = 0.15;     // share of padded tokens
  int microbatches = 2;     // at most so many of the step's in lockstep; 0: all
  double tolerance = 1e-9;  // of f64 values, relative to the largest element
  bool execute = true;      // complete plans on the executor as well
};

class PassValidator {
 public:
  explicit PassValidator(ValidateOptions options = {});
  ~PassValidator();
  PassValidator(const PassValidator&) = delete;

  // Error: Internal if the results differ, with pass, node and rank; whatever keeps one of the programs from
  // running.
  absl::Status Compare(const std::string& pass, const Program& before, const Program& after);
  std::function<absl::Status(const std::string&, const Program&, const Program&)> Hook();

 private:
  struct Last;  // the program after the last pass, and what it gave
  const ValidateOptions options_;
  std::unique_ptr<Last> last_;
};

// The results of one step on the executor against those of lockstep runs, see above. Error: Internal, naming
// state or report.
absl::Status CompareWithExecutor(const Program& plan, const ValidateOptions& options);

}  // namespace moe::testing
