// Registration of the reference kernels, one function per op family. They are the meaning of the ops: plain
// loops in double whatever the storage, in f64 and f32, with nothing clever in them. The interpreter runs on
// them.
#pragma once

#include "moe/kernels/kernel.h"

namespace moe::kernels {

void RegisterReferenceMath(KernelRegistry& r);
void RegisterReferenceNn(KernelRegistry& r);
void RegisterReferenceLoss(KernelRegistry& r);  // the nn ops of the head and its loss
void RegisterReferenceMoe(KernelRegistry& r);
void RegisterReferenceOptim(KernelRegistry& r);
void RegisterReferenceFused(KernelRegistry& r);

}  // namespace moe::kernels
