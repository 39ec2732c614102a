// What a run would change by going on from a checkpoint: what it must not, and what it may and is told of.
//
//   RETURN_IF_ERROR(CheckResume(checkpoint->meta(), config, data->Fingerprint(), /*planned=*/false));
//   // cannot go on from this checkpoint; 2 settings are not those that it was saved with
//   //   seed: checkpoint 1, this run 2
//   //   seq_length: checkpoint 32, this run 64
//   for (const std::string& s : ChangedSettings(checkpoint->meta(), config)) ...   // "lr: 0.004 -> 0.001"
//
// Plain functions over values; thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "moe/train/checkpoint/checkpoint.h"
#include "moe/train/config/config.h"

namespace moe::train {

// FailedPrecondition with all settings by which the run would not be the same one: model, seed, text, and how the
// text is cut into samples. `data_fingerprint` is that of the Dataset; once the run is `planned`, that of its
// trainer's CheckpointMeta, by which of several lengths also those and the batches are compared that the plans
// have.
absl::Status CheckResume(const CheckpointMeta& saved, const RunConfig& resolved,
                         absl::string_view data_fingerprint, bool planned);

// Settings that may change, and did. Paths and intervals of reports are not among them.
std::vector<std::string> ChangedSettings(const CheckpointMeta& saved, const RunConfig& resolved);

// The learning rate of the next step beside that of the schedule so far; empty if they are the same.
std::string ChangedLearningRate(const CheckpointMeta& saved, const RunConfig& resolved);

// That the warm-up outlasts the run, and where the learning rate gets to; empty if it does not.
std::string WarmUpBeyondTheEnd(const TrainConfig& train);

}  // namespace moe::train
