// A small model compiled up to insert-collectives, for tests of placement.
//
//   ASSERT_OK_AND_ASSIGN(auto m, CompileSharded(SmallMoe(), "tp=2 dp=4 ep=4 sp vp zero=1"));
//   const Function* chunk = m->module().Find("chunk0");
//   const Function* logical = m->logical->Find("chunk0");   // the same before shard
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "moe/ir/program.h"
#include "moe/model/config.h"

namespace moe::testing {

// Two layers, the second with experts; f64; sizes that divide over 16 ranks (4 routing groups of 2 tokens).
model::ModelConfig SmallMoe();
model::ModelConfig SmallDense();     // the same with two dense layers
model::ModelConfig SmallDropless();  // the same with ragged slots

struct ShardedModel {
  Program program;
  std::unique_ptr<Module> logical;  // as `shard` got it
  std::vector<std::string> notes;   // of shard and insert-collectives
  double milliseconds = 0;          // of shard
  const Module& module() const { return *program.module; }
};

// autodiff, context-parallel, mixed-precision, partition-stages, shard, insert-collectives; verified after
// the last two.
absl::StatusOr<std::unique_ptr<ShardedModel>> CompileSharded(const model::ModelConfig& config,
                                                             const std::string& strategy,
                                                             int64_t global_batch = 8);

}  // namespace moe::testing
