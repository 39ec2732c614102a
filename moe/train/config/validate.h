// Checks of a whole configuration: every problem at once, each with what would be legal, and the nearest
// strategy that works.
//
//   const absl::Status status = ValidateRunConfig(ResolveRunConfig(config));
//   // error: this configuration cannot be built; 2 problems
//   //
//   //   1  expert_model_parallel_size = 3 does not divide num_experts = 8
//   //      legal here: 1, 2, 4, 8
//   //   2  ...
//   //
//   // nearest legal strategy:  pp 2 x dp 2 x tp 2, ep 2, 4 experts per rank
//   //   --expert_model_parallel_size=2
//
// Configurations are the resolved ones of config.h. Plain functions; thread-safe.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "moe/train/config/config.h"

namespace moe::train {

struct ConfigProblem {
  std::string what;   // the value, and what it violates
  std::string legal;  // "1, 2, 4, 8"; may be empty where `what` says it
};

// Problems of the model by itself.
std::vector<ConfigProblem> ModelConfigProblems(const RunConfig& config);
// Problems of the strategy for this model and batch, also where the model has problems of its own.
std::vector<ConfigProblem> StrategyProblems(const RunConfig& config);
// Problems of the training part: counts, rates, intervals.
std::vector<ConfigProblem> TrainConfigProblems(const RunConfig& config);

// The legal configuration that differs least (in the sum of logarithms of ratios) in parallel sizes and micro
// batch size; nothing else changes, but a schedule or word without meaning falls back to its default. Nothing
// if none was found.
std::optional<RunConfig> NearestLegalStrategy(const RunConfig& config);

// InvalidArgument with all of the above; OK for a configuration that can be built.
absl::Status ValidateRunConfig(const RunConfig& config);

}  // namespace moe::train
