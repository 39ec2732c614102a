// What --resume names: a run, which is where its folder is, and the checkpoint in it to go on from.
//
//   ASSIGN_OR_RETURN(RunConfig base, ConfigToResume("runs/mine/checkpoint/step_00000300"));  // flags go over it
//   const std::string run = RunOf("runs/mine/checkpoint/step_00000300");                     // "runs/mine"
//   ASSIGN_OR_RETURN(std::string from, FindStart("runs/mine"));   // its newest checkpoint, "" if it has none yet
//
// A run folder has a config.textproto, which says what the run is and not where: neither its folder nor what it
// was resumed from stands there, and a relative path is meant from the folder. So a folder may be moved or
// copied, and what is resumed is what lies there. Plain functions over files; thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/train/config/config.h"

namespace moe::train {

// The folder of the run that `path` belongs to: itself, or what its checkpoint/ or one of its checkpoints lies
// in. Empty if it belongs to none.
std::string RunOf(const std::string& path);
// Whether the folder has a checkpoint, whole or not, that a new run must not write beside.
bool HoldsRun(const std::string& folder);
bool SameFolder(const std::string& a, const std::string& b);

// What the run that `path` belongs to was told, over the defaults; of a checkpoint in no run, what it was saved
// with. Neither its folder nor what it was resumed from.
absl::StatusOr<RunConfig> ConfigToResume(const std::string& path);

// The checkpoint that `path` stands for (see FindCheckpoint). Empty for a run that has none yet and begins at
// its beginning; of a run that was to begin from a checkpoint elsewhere, that one. NotFound if there is neither
// a run nor a checkpoint.
absl::StatusOr<std::string> FindStart(const std::string& path);

// The run that goes on in its own folder; empty for one that begins, or that goes on in a folder of its own.
std::string ContinuedRun(const TrainConfig& train);
// FindStart of what it resumes; empty, too, if it resumes nothing, or names for both a folder that has no run.
absl::StatusOr<std::string> FindStartOf(const TrainConfig& train);

// Writes config.textproto, and notes the checkpoint elsewhere that a run begins from, for FindStart; "" if none.
absl::Status WriteRunConfig(const std::string& run, const RunConfig& config);
absl::Status NoteOrigin(const std::string& run, const std::string& checkpoint);

}  // namespace moe::train
