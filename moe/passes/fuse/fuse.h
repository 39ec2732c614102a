// fuse: named fusions with a kernel behind each, on placed graphs, after `checkpoint` and before
// `split-phases`.
//
//   name          finds                                        makes
//   adamw         optim.adamw nodes of the update              optim.multi_adamw, up to 16 tensors each
//   add-rms-norm  nn.rms_norm of a math.add                    nn.add_rms_norm
//   elementwise   chains of math.* whose links have one use    math.fused
//   router        nn.softmax, moe.top_k, moe.count             moe.router; moe.softmax_top_k where the choices
//                                                              are counted after a gather
//
//   --passes=...,fuse{only=router}      --passes=...,fuse{skip=adamw+elementwise}
//
// Results never change beyond rounding: only nodes of one phase and one placement are fused, the new node
// takes their factor assignment and the types of the results that it replaces, and no data moves in between
// (a collective is never part of a fusion). Names of results are kept, so routing replay finds its decisions
// and state its bindings. A fusion is left out where the Target has no kernel for its op. The note says how
// many there are of each: "add-rms-norm 8, router 4".
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

// Options: only, skip: names separated by '+'. Error: InvalidArgument for a name that is not a fusion.
absl::StatusOr<bool> Fuse(Program& program, const PassContext& context);

}  // namespace moe::passes
