// fuse-rs-ag: a reduce_scatter followed by an all_gather over the same axes is an all_reduce. A pass that
// lives outside moe/passes; docs/writing_a_pass.md shows it, and linking this library registers it.
//
//   %a = comm.reduce_scatter(%x) {axes = [tp]} : f32[8@tp, 8]
//   %b = comm.all_gather(%a) {axes = [tp]} : f32[8, 8]
//   ->
//   %b = comm.all_reduce(%x) {axes = [tp]} : f32[8, 8]
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/passes/pass.h"

namespace moe::examples {
namespace {

absl::StatusOr<bool> FuseReduceScatterAllGather(Function& f, const passes::PassContext&) {
  bool changed = false;
  for (Node* gather : f.NodesOf("comm.all_gather")) {  // a snapshot: rewriting while iterating is fine
    Node* scatter = gather->operand(0).node;
    if (!scatter->Is("comm.reduce_scatter") || !gather->operand(0).HasOneUse()) continue;
    if (scatter->axes() != gather->axes()) continue;
    Builder b = Builder::Before(gather);  // inherits phase, scope and provenance
    ASSIGN_OR_RETURN(Value y, b.Create("comm.all_reduce", {scatter->operand(0)}, {{"axes", gather->axes()}}));
    f.ReplaceAllUses(gather->result(), y);  // remove-dead-nodes takes the rest away
    changed = true;
  }
  return changed;
}

const bool registered =
    passes::RegisterPass({"fuse-rs-ag", "reduce_scatter + all_gather over the same axes -> all_reduce.",
                          passes::ForEachFunction(FuseReduceScatterAllGather)});

}  // namespace
}  // namespace moe::examples
