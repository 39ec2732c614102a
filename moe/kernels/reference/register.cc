#include "moe/kernels/reference/families.h"

namespace moe::kernels {

void RegisterReferenceKernels(KernelRegistry& r) {
  RegisterReferenceFused(r);
  RegisterReferenceLoss(r);
  RegisterReferenceMath(r);
  RegisterReferenceMoe(r);
  RegisterReferenceNn(r);
  RegisterReferenceOptim(r);
}

}  // namespace moe::kernels
