#include "moe/kernels/cpu/families.h"

namespace moe::kernels {

void RegisterCpuKernels(KernelRegistry& r) {
  RegisterCpuAttention(r);
  RegisterCpuFused(r);
  RegisterCpuLoss(r);
  RegisterCpuMath(r);
  RegisterCpuMoe(r);
  RegisterCpuNn(r);
  RegisterCpuOptim(r);
  // Small ops, where the plain loop is as good as any.
  KernelRegistry reference;
  RegisterReferenceKernels(reference);
  for (const Kernel* k : reference.All()) {
    if (r.Find(k->op, Backend::kCpu, k->dtype) != nullptr) continue;
    Kernel cpu = *k;
    cpu.backend = Backend::kCpu;
    r.Add(cpu);
  }
}

}  // namespace moe::kernels
