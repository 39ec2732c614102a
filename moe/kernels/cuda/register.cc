#include "moe/kernels/cuda/families.h"

namespace moe::kernels {
namespace {

const KernelRegistration kRegistration([](KernelRegistry& r) {
  RegisterCudaMath(r);
  RegisterCudaCopies(r);
  RegisterCudaNn(r);
  RegisterCudaEmbed(r);
  RegisterCudaLoss(r);
  RegisterCudaMoe(r);
  RegisterCudaExpertParts(r);
  RegisterCudaRouting(r);
  RegisterCudaOptim(r);
});

}  // namespace
}  // namespace moe::kernels
