// Registration of the CPU kernels, one function per family. Ops that none of them names run their reference
// loops on the CPU as well (register.cc).
#pragma once

#include "moe/kernels/kernel.h"

namespace moe::kernels {

void RegisterCpuAttention(KernelRegistry& r);
void RegisterCpuMath(KernelRegistry& r);
void RegisterCpuNn(KernelRegistry& r);
void RegisterCpuLoss(KernelRegistry& r);
void RegisterCpuMoe(KernelRegistry& r);
void RegisterCpuOptim(KernelRegistry& r);
void RegisterCpuFused(KernelRegistry& r);

}  // namespace moe::kernels
