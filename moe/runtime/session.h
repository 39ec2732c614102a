// Session: a compiled or interpreted training program with its state. The trainer and the equivalence harness
// drive the one-device interpreter and the executor of a Plan through this one interface.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Session> s, Executor::Create(plan, options));
//   RETURN_IF_ERROR(s->InitializeState(seed));
//   ASSIGN_OR_RETURN(Reports r, s->TrainStep(inputs));
//
// Used by one thread at a time. Buffers passed in are copied before the call returns.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "moe/ir/types.h"

namespace moe::runtime {

// One step's data, global: microbatch j is samples [j B, (j + 1) B), B = global_batch / microbatches.
struct StepInputs {
  std::vector<int32_t> tokens, labels;    // [global_batch, seq]
  std::vector<float> mask;                // [global_batch, seq], 1 valid / 0 padding
  std::vector<int32_t> positions;         // [seq]; ascending where a library computes attention
  std::map<std::string, double> scalars;  // inv_tokens, learning_rate, bias1, bias2, ...
};

// Scalars and small vectors by report name ("lm loss", "grad norm", "finite", "load layers.2"), summed over
// states that carry the same name.
using Reports = std::map<std::string, std::vector<double>>;

// Global routing decisions by the name of the node's result in the logical graph and microbatch, for replay.
using Decisions = std::map<std::pair<std::string, int>, std::vector<int32_t>>;

class Session {
 public:
  virtual ~Session() = default;

  // Parameters from the counter-based generator (init.h), keyed by name and global element index; moments
  // zero.
  virtual absl::Status InitializeState(uint64_t seed) = 0;
  virtual absl::StatusOr<Reports> TrainStep(const StepInputs& inputs) = 0;
  virtual absl::StatusOr<Reports> EvalStep(const StepInputs& inputs) = 0;

  // Logical tensors (global, row-major, by experts and words), as f64. Names as in Module::states(). Reading
  // checks that replicas agree bitwise (Internal error naming the ranks otherwise); a partial value is
  // reduced.
  virtual std::vector<std::string> StateNames() const = 0;
  virtual absl::StatusOr<Type> StateType(const std::string& name) const = 0;
  virtual absl::StatusOr<std::vector<double>> ReadState(const std::string& name) = 0;
  virtual absl::Status WriteState(const std::string& name, absl::Span<const double> values) = 0;

  // Recording and replay of `decision` values (expert indices of moe.top_k / moe.router). Null switches off.
  virtual void RecordDecisions(Decisions* into) = 0;
  virtual void ReplayDecisions(const Decisions* from) = 0;
};

}  // namespace moe::runtime
