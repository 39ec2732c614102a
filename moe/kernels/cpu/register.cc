#include "moe/kernels/kernel.h"

namespace moe {

void RegisterCpuKernels(KernelRegistry& r) {
  KernelRegistry reference;
  RegisterReferenceKernels(reference);
  // What the lists above leave out: ops whose plain loop is as good as any.
  for (const Kernel* k : reference.All()) {
    if (r.Find(k->op, Backend::kCpu, k->dtype) != nullptr) continue;
    Kernel cpu = *k;
    cpu.backend = Backend::kCpu;
    r.Add(cpu);
  }
}

}  // namespace moe
