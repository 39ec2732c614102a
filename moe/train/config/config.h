// The configuration of a run: defaults, text, and what the other layers make of it.
//
//   RunConfig config = DefaultRunConfig();
//   RETURN_IF_ERROR(MergeRunConfigFile("my.textproto", config));   // flags.h puts flags on top
//   config = ResolveRunConfig(config);
//   RETURN_IF_ERROR(ValidateRunConfig(config));                    // validate.h
//   strategy::Strategy s = StrategyOf(config);
//
// Parts are only laid over each other; what follows from several of them is decided once all are there, by
// ResolveRunConfig, so their order does not matter. Defaults stand in config.proto.
//
// The strategy is text (docs/strategy.md), which StrategyOf reads. Resolved, it has no word that stands for
// something else, and no microbatches: these follow from the batch sizes.
//
// Plain functions over values; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/cost/target.h"
#include "moe/strategy/strategy.h"
#include "moe/train/config/config.pb.h"

namespace moe::train {

// A small MoE transformer on English text: 8 virtual devices, pp 2 x dp 2 x tp 2 with sequence parallelism and
// ZeRO-1, experts over the 4 ranks of a stage; 4 microbatches of 8 x 128 tokens. Tokens are exchanged there and back.
RunConfig DefaultRunConfig();

// Overlays a textproto file. A relative data_path is meant from the folder that the file is in. InvalidArgument
// naming every unknown field with line and column.
absl::Status MergeRunConfigFile(const std::string& path, RunConfig& config);

// Sets every field that was left out and has a default or follows from others. What is given keeps its value, and
// what contradicts itself stays, for ValidateRunConfig. Idempotent.
RunConfig ResolveRunConfig(RunConfig config);

// The strategy of the passes, with the microbatches that the batch sizes give, at least 1. Words that cannot
// be read, which ValidateRunConfig refuses, have their defaults.
strategy::Strategy StrategyOf(const RunConfig& resolved);
// The reverse, for a configuration still to be resolved; several microbatches decide the micro_batch_size.
void SetStrategy(const strategy::Strategy& strategy, RunConfig& config);
// Sets single words of it: "checkpoint=full sp".
void SetWords(absl::string_view words, RunConfig& config);

// The target of the passes, with the links that the configuration names.
cost::Target TargetOf(const RunConfig& resolved);

// Microbatches of a step: global_batch_size / (micro_batch_size x dp); 0 if that is no whole
// number.
int64_t NumMicrobatches(const RunConfig& resolved);

// Lengths of `length_buckets`, or the model's own. InvalidArgument if the text is no ascending list.
absl::StatusOr<std::vector<int64_t>> LengthsOf(const RunConfig& resolved);

// All that is set, zeros too; of a resolved configuration, parses back to the same over any defaults.
std::string RunConfigToText(const RunConfig& config);

// $XDG_CACHE_HOME/switchyard/english.txt, with ~/.cache where that is not set: what setup.sh makes.
std::string DefaultDataPath();

// The line of the summary: "8 virtual devices   pp 2 x dp 2 x tp 2, sequence parallel, ZeRO-1   experts: ep 4,
// edp 1, etp 1   1F1B, 4 microbatches of 8 x 128".
std::string DescribeStrategy(const RunConfig& resolved);

}  // namespace moe::train
