// Command-line flags of a run, in Megatron's words, over a textproto, over the defaults.
//
//   absl::ParseCommandLine(argc, argv);                     // also reads --flagfile
//   ASSIGN_OR_RETURN(RunConfig config, RunConfigFromFlags());   // resolved; still to be validated
//
// In this order, later ones win: `base`, --config=FILE (RunConfig), --model=FILE (ModelConfig,
// replaces the whole model), --strategy="pp=2 tp=4 ep=8" (replaces the whole strategy), single flags. A flag
// that is not given changes nothing, but --resume says where the run is, so a run_dir that no flag names is
// not heeded then. Linking this library is what defines the flags.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "moe/train/config/config.h"

namespace moe::train {

absl::StatusOr<RunConfig> RunConfigFromFlags(const RunConfig& base = DefaultRunConfig());

// The flags that set a single field, or a word of the strategy (moe/strategy/word.h), sorted: for docs and
// error texts.
std::vector<std::string> RunConfigFlagNames();

}  // namespace moe::train
