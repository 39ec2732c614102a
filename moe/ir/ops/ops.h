// Registration of the built-in ops, one function per family.
#pragma once

#include "moe/ir/registry.h"

namespace moe {

void RegisterMathOps(OpRegistry* r);  // math.*: elementwise, einsum, reshapes
void RegisterNnOps(OpRegistry* r);   // nn.*: embedding, norms, rotary positions, attention, SwiGLU, head loss
void RegisterMoeOps(OpRegistry* r);  // moe.*: routing, dispatch, combine
void RegisterCommOps(OpRegistry* r);   // comm.*: conversions between placements, transfers between stages
void RegisterOptimOps(OpRegistry* r);  // optim.*: accumulation, clipping, AdamW
void RegisterFusedOps(OpRegistry* r);  // what `fuse` creates

}  // namespace moe
