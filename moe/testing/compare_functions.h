// Compares a placed function with the same function on one device, value by value: the oracle of placement bugs,
// which names the first value and rank that differ.
//
//   std::unique_ptr<Module> logical = CloneModule(*program.module);      // before shard
//   ... shard, insert-collectives ...
//   EXPECT_OK(CompareWithOneDevice(*logical->Find("chunk0"), *program.module->Find("chunk0"), {.vocab = 32}));
//
// Both run on virtual clusters, with reference kernels, in the dtype of the module (f64 for tight tolerances), and
// with conversions by what their types mean: steps are another matter (cluster_step.h). Values are matched by name;
// a producer that shard placed anew is compared with the original. Arguments get random global values, of which
// each rank takes its part; a partial argument is split into random summands, accumulators are zero.
// comm.stage_reduce is the identity on both sides. Keeps nothing.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "moe/ir/graph.h"

namespace moe::testing {

struct CompareOptions {
  uint64_t seed = 1;
  int64_t vocab = 32;       // tokens and labels lie below it
  double masked = 0.15;     // share of padded tokens
  double tolerance = 1e-9;  // relative to the largest element of the value
};

// Error: Internal, with the value, the rank and both numbers, for the first difference; NotFound for a missing
// kernel; FailedPrecondition if the functions do not correspond.
absl::Status CompareWithOneDevice(const Function& logical, const Function& placed,
                                  const CompareOptions& options = {});

}  // namespace moe::testing
