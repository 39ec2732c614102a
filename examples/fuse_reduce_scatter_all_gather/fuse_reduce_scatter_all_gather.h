// fuse-rs-ag: reduce_scatter followed by all_gather over the same axes is an all_reduce. A pass that lives
// outside moe/passes, as docs/writing_a_pass.md explains; linking this library registers it.
//
//   %a = comm.reduce_scatter(%x) {axes = [tp]} : f32[8@tp, 8]       ->   %s = comm.all_reduce(%x) {axes =
//   [tp]} : f32[8, 8] %b = comm.all_gather(%a) {axes = [tp]} : f32[8, 8]
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::examples {

absl::StatusOr<bool> FuseReduceScatterAllGather(Function& f, const passes::PassContext& context);

}  // namespace moe::examples
