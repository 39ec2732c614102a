// Registration of the CUDA kernels, one function per op family, and the library's KernelRegistration in
// register.cc.
//
// Kernels put their work on KernelContext::stream and return. They take f32, bf16 and f16, compute in f32,
// and ask each operand for its dtype, so that one function serves an op in all of them. Sums have an order
// that depends on shapes alone; floats are never added atomically.
#pragma once

#include "moe/kernels/kernel.h"

namespace moe::kernels {

void RegisterCudaMath(KernelRegistry& r);
void RegisterCudaCopies(KernelRegistry& r);  // the math ops that move elements
void RegisterCudaNn(KernelRegistry& r);
void RegisterCudaEmbed(KernelRegistry& r);
void RegisterCudaLoss(KernelRegistry& r);
void RegisterCudaMoe(KernelRegistry& r);          // between dispatch and combine
void RegisterCudaExpertParts(KernelRegistry& r);  // split and joined
void RegisterCudaRouting(KernelRegistry& r);      // what decides where tokens go
void RegisterCudaOptim(KernelRegistry& r);

}  // namespace moe::kernels
