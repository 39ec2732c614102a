// The message of a run that failed in a step: which rank held up which, what all ranks did last, and how to
// go on.
//
//   return ExplainFailure(status, RanLast(executors), group, mesh, "runs/7", trainer.last_checkpoint());
//
// Called once, on every process that can, after which the executors run nothing more. One thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "moe/ir/types.h"
#include "moe/runtime/executor.h"
#include "moe/train/run/process_group.h"

namespace moe::train {

// Of the executors of several plans, the one whose ranks began something last.
const runtime::Executor& RanLast(const std::vector<runtime::Executor*>& executors);

// `status` with the message to show. The records go to flight/ in the run directory `dir`, where that is not
// empty: those of a process by itself, those of a process that cannot by the first that can. `group` is null
// for a process alone; `checkpoint` is the last one that was saved, or empty.
absl::Status ExplainFailure(const absl::Status& status, const runtime::Executor& executor,
                            ProcessGroup* group, const Mesh& mesh, const std::string& dir,
                            const std::string& checkpoint);

}  // namespace moe::train
