// The one line of history of a run: its checkpoints and metrics.jsonl are of the same steps, in the order in
// which they were trained.
//
//   ASSIGN_OR_RETURN(const std::string said, SetLaterAside("runs/mine", /*step=*/4));
//   // "steps 6 and 8 are kept in runs/mine/retired/after_step_00000004"
//   RETURN_IF_ERROR(RemoveRemains("runs/mine"));
//
// Whoever calls them holds the run's folder (run_folder.h). Plain functions over files.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moe::train {

// Before a run goes on from `step`: moves checkpoints of later steps, which would be taken for its newest, to a
// new folder under retired/, and copies there the lines of metrics.jsonl about later steps; they are then cut
// from it when the next line is written (MetricsWriter). Says where things went; empty if there was nothing.
// Lines of steps that no checkpoint has are lost steps, and not kept, except for a run that begins anew.
absl::StatusOr<std::string> SetLaterAside(const std::string& run, int64_t step);

// Removes temporary files and folders that writers left behind when they were killed.
absl::Status RemoveRemains(const std::string& run);

}  // namespace moe::train
