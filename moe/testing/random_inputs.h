// Random data for a step of a module, for tests and checks: seeded, the same on every machine.
//
//   ASSERT_OK_AND_ASSIGN(const auto in, RandomInputs(module, {.seed = 7}, step));   // step counts from 1
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "moe/ir/graph.h"
#include "moe/runtime/session.h"

namespace moe::testing {

struct RandomInputOptions {
  uint64_t seed = 1;
  double masked = 0.15;  // share of padded tokens, anywhere in the batch
  double learning_rate = 1e-2;
  bool empty_sample = false;  // all tokens of the first sample are padding
};

// Tokens and labels below the vocabulary (the rows of the embedding), a mask with at least one valid token,
// positions 0.., and all scalars of a training step: inv_tokens, inv_microbatches, learning_rate, bias1,
// bias2. Sizes come from the module's attributes. Error: FailedPrecondition if the module lacks them or the
// state "embedding".
absl::StatusOr<runtime::StepInputs> RandomInputs(const Module& module, const RandomInputOptions& options,
                                                 int64_t step);

}  // namespace moe::testing
