// Checkpoint <-> Session: which states of a module outlive a run, and how they are saved and restored.
//
//   RETURN_IF_ERROR(SaveSession("runs/7/checkpoint/step_00000300", meta, *program.module, session));
//   ASSIGN_OR_RETURN(CheckpointMeta found, RestoreSession(dir, model, *program.module, session));
//
// Saved are parameters and moments, as logical tensors in the dtype they train in, so restoring is exact and
// any plan restores what any plan saved. One thread at a time; nothing is owned.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/ir/graph.h"
#include "moe/runtime/session.h"
#include "moe/train/checkpoint/checkpoint.h"

namespace moe::train {

// Parameters, and with `moments` the optimizer's; in the order of the module's states.
std::vector<TensorSpec> PersistentTensors(const Module& module, bool moments = true);

// `dir` appears whole or not at all. Of several processes one `writes`, and all read the session together.
absl::Status SaveSession(const std::string& dir, const CheckpointMeta& meta, const Module& module,
                         runtime::Session& session, bool writes = true);

// Restores parameters, and with `moments` the optimizer's. Errors, before anything is written to the session:
// another model, missing or reshaped tensors. A tensor that is damaged on disk is an error, too; the session
// is then partly restored and of no use.
absl::StatusOr<CheckpointMeta> RestoreSession(const std::string& dir, const model::ModelConfig& model,
                                              const Module& module, runtime::Session& session,
                                              bool moments = true);

// The checkpoint that `path` stands for: itself, or the latest one in a folder of checkpoints or a run
// directory.
absl::StatusOr<std::string> FindCheckpoint(const std::string& path);

}  // namespace moe::train
