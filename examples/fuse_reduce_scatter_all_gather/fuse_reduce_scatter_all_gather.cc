#include "examples/fuse_reduce_scatter_all_gather/fuse_reduce_scatter_all_gather.h"

#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/conversion_steps.h"

namespace moe::examples {
namespace {

// The placement of a value after its partial sums over `axes` are reduced.
Placement Reduced(Placement p, const AxisList& axes) {
  for (AxisId a : axes) {
    for (auto it = p.partial.begin(); it != p.partial.end(); ++it) {
      if (it->axis == a) {
        p.partial.erase(it);
        break;
      }
    }
  }
  return p;
}

}  // namespace

absl::StatusOr<bool> FuseReduceScatterAllGather(Function& f, const passes::PassContext&) {
  bool changed = false;
  for (Node* gather : f.NodesOf("comm.all_gather")) {  // a snapshot: rewriting while iterating is fine
    Node* scatter = gather->operand(0).node;
    if (!scatter->Is("comm.reduce_scatter") || !gather->operand(0).HasOneUse()) continue;
    if (scatter->axes() != gather->axes()) continue;
    const Value x = scatter->operand(0);
    if (!(gather->type().placement == Reduced(x.type().placement, gather->axes()))) continue;

    ConversionStep step{StepKind::kAllReduce, {}};
    for (AxisId a : gather->axes()) step.moves.push_back({a, x.type().placement.Role(a), Placement::kNone});
    Builder b = Builder::Before(gather);  // inherits phase, scope and provenance
    ASSIGN_OR_RETURN(Node * sum, b.CreateTyped("comm.all_reduce", {x},
                                               {{"axes", Axes{gather->axes()}},
                                                {"steps", PrintSteps({step}, f.module()->mesh())}},
                                               {gather->type()}));
    f.ReplaceAllUses(gather->result(), sum->result());  // remove-dead-nodes takes the rest away
    changed = true;
  }
  return changed;
}

namespace {
const bool registered =
    passes::RegisterPass({"fuse-rs-ag", "reduce_scatter + all_gather over the same axes -> all_reduce.",
                          passes::ForEachFunction(FuseReduceScatterAllGather)});
}  // namespace

}  // namespace moe::examples
