// The memory plan of a stage for people: a summary by category, the largest buffers, and a picture of
// addresses over time.
//
//   memory      peak 4.62 MiB per rank
//     parameters       1.5 MiB   32.5%
//     ...
//
// Every byte shown comes from Program::memory; nothing is estimated. Plain functions; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "moe/ir/program.h"

namespace moe::inspect {

// Bytes of one rank by category, in the order of the arena: "parameters", "gradients", "optimizer",
// "counters", "inputs", "residuals", "boundaries", "frame". Empty without a memory plan.
struct MemoryShare {
  std::string category;
  int64_t bytes = 0;
};
std::vector<MemoryShare> MemoryShares(const Program& program, int stage);

std::string MemoryText(const Program& program, int stage);  // empty without a memory plan

// One place in the arena: a state, an input, a set of residual or boundary slots, or a value or scratch of a
// function's frame.
struct BufferUse {
  std::string name, where;  // "layers.0.moe.d", "frame of @forward0, nodes 12-31"
  Space space = Space::kFrame;
  int64_t address = 0, bytes = 0;  // from the start of the arena
};
// By size; ties by address, then name.
std::vector<BufferUse> LargestBuffers(const Program& program, int stage, size_t count);
std::string LargestBuffersText(const Program& program, int stage, size_t count = 20);

// Where a space begins in the arena.
int64_t SpaceBase(const StageMemory& memory, Space space);

// Nodes during which a frame value holds its bytes: first and last position in the function's body.
struct LiveRange {
  int first = 0, last = 0;
};
LiveRange LiveRangeOf(const Function& function, const Value& value);

// Address (down) over the actions of a training step (right): states, inputs, residual slots with the
// microbatch they hold, boundary slots, and the frame with the values of the function that runs. Errors:
// NotFound for a stage that is not there, FailedPrecondition without a memory plan or resolved actions.
absl::StatusOr<std::string> BuffersSvg(const Program& program, int stage);

}  // namespace moe::inspect
