#include "moe/kernels/kernel.h"

namespace moe::kernels {

const KernelRegistry& Kernels() {
  static const KernelRegistry& registry = *[] {
    auto* r = new KernelRegistry;
    RegisterReferenceKernels(*r);
    RegisterBlasKernels(*r);
    RegisterCpuKernels(*r);
    RegisterLinkedKernels(*r);
    RegisterWidenedKernels(*r);
    return r;
  }();
  return registry;
}

}  // namespace moe::kernels
