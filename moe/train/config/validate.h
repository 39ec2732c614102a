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

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "moe/strategy/problems.h"
#include "moe/train/config/config.h"

namespace moe::train {

// Bounds of TrainConfig and ClusterConfig, beside the narrower ones of single fields; those of a model are in
// moe/model/config.cc, those of a strategy in its words.
inline constexpr int64_t kMaxConfigCount = int64_t{1} << 40;  // of steps and samples
inline constexpr double kMaxConfigNumber = 1e300;

// Problems of the model by itself.
std::vector<strategy::Problem> ModelConfigProblems(const RunConfig& config);
// Problems of the strategy for this model and batch, also where the model has problems of its own.
std::vector<strategy::Problem> StrategyProblems(const RunConfig& config);
// Problems of the training part: counts, rates, intervals.
std::vector<strategy::Problem> TrainConfigProblems(const RunConfig& config);

// What the checks and the search know of the model, the batch and the target.
strategy::Facts FactsOf(const RunConfig& config);

// Whether a configuration without problems compiles; null: it is believed to. plan_search.h has one.
using Compiles = std::function<bool(const RunConfig& config)>;

// The legal configuration whose strategy differs least (moe/strategy/nearest.h), and which compiles. Nothing
// if none was found.
std::optional<RunConfig> NearestLegalStrategy(const RunConfig& config, const Compiles& compiles = nullptr);

// InvalidArgument with all of the above; OK for a configuration that can be built.
absl::Status ValidateRunConfig(const RunConfig& config, const Compiles& compiles = nullptr);
// The same of the strategy alone, for a model that need not be trained.
absl::Status ValidateStrategy(const RunConfig& config, const Compiles& compiles = nullptr);

}  // namespace moe::train
