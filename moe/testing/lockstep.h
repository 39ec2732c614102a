// Lockstep: runs a placed function on all ranks at once, node by node, and compares every value with the same
// function run on one device. The oracle of placement bugs: it names the first value and rank that differ.
//
//   std::unique_ptr<Module> logical = CloneModule(*program.module);      // before shard
//   ... shard, insert-collectives ...
//   Lockstep lockstep({.seed = 1, .vocab = 32});
//   EXPECT_OK(lockstep.Compare(*logical->Find("chunk0"), *program.module->Find("chunk0")));
//
// Kernels are the reference ones, in the dtype of the module (f64 for tight tolerances). Conversions (comm.*)
// are executed by what their types mean, element by element, not by their steps, so that the two can be told
// apart. Values are matched by name; a producer that shard placed anew is compared with the original.
// Arguments get random global values, of which each rank takes its part; a partial argument is split into
// random summands, accumulators are zero. comm.stage_reduce is the identity on both sides. One thread; keeps
// nothing but the options.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/ir/graph.h"

namespace moe::testing {

struct LockstepOptions {
  uint64_t seed = 1;
  int64_t vocab = 32;       // tokens and labels lie below it
  double masked = 0.15;     // share of padded tokens
  double tolerance = 1e-9;  // relative to the largest element of the value
};

class Lockstep {
 public:
  explicit Lockstep(LockstepOptions options = {}) : options_(options) {}

  // Error: Internal, with the value, the rank and both numbers, for the first difference; NotFound for a
  // missing kernel; FailedPrecondition if the functions do not correspond.
  absl::Status Compare(const Function& logical, const Function& placed) const;

 private:
  LockstepOptions options_;
};

}  // namespace moe::testing
