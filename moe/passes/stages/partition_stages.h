// partition-stages: cuts @step into chunks, one function each, and @update and @report into one per pipeline
// stage.
//
// Chunks are contiguous runs of layers, by Node::scope; the embedding goes with the first and the head with
// the last, and the cut makes the dearest chunk as cheap as possible (moe/cost). A backward node runs where
// its forward does. What crosses chunks is the residual stream ("act.<c>", made by chunk c) and its gradient
// ("grad.<c>", sent back to chunk c), nothing else:
//
//   func @chunk1(%x: f32[8,16,64] {kind = "boundary", name = "act.0", peer = 0, tag = "residual_stream"},
//   ...)
//
// A parameter used by chunks of several stages (a tied head) lives on all of them: each accumulates its own
// gradient, and the updates add these up by comm.stage_reduce. The global norm is a stage_reduce over local
// sums to which each gradient contributes on its owner only, the first of its stages. Sets the state
// attributes `stages` and, for accumulators, `chunk`; fills Program::schedule (but for its actions) and
// Program::inventory.
//
// Errors: InvalidArgument for more chunks than layers or a bad schedule table; Internal, naming the value, if
// anything else would cross chunks.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

absl::StatusOr<bool> PartitionStages(Program& program, const PassContext& context);

// Stages on which a state lives (its attribute `stages`; stage 0 without).
std::vector<int64_t> StagesOf(const State& state);

// The second half: @update and @report into @update<s> and @report<s>. States carry their stages already.
absl::Status PartitionUpdate(Module& module, int stages);

}  // namespace moe::passes
