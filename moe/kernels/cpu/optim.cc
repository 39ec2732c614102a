#include "moe/kernels/cpu/optim.h"

#include "moe/kernels/cpu/families.h"
#include "moe/kernels/cpu/simd.h"

namespace moe::kernels {
namespace {

template <typename T>
absl::Status Accumulate(KernelContext& c) {
  Simd<T>::Get().add(c.in[0].As<T>(), c.in[1].As<T>(), c.out[0].As<T>(), c.out[0].elements());
  return absl::OkStatus();
}

template <typename T>
absl::Status AdamW(KernelContext& c) {
  return AdamWTensor<T>(*c.node, c.node->Float("weight_decay"), {&c.in[4], 5})
      .Run({&c.in[0], &c.in[1], &c.in[2], &c.in[3]}, {&c.out[0], &c.out[1], &c.out[2]}, nullptr);
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  r.Add({"optim.accumulate", Backend::kCpu, dtype, &Accumulate<T>});
  r.Add({"optim.adamw", Backend::kCpu, dtype, &AdamW<T>});
}

}  // namespace

void RegisterCpuOptim(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
  for (const DType narrow : {DType::kBF16, DType::kF16})
    r.Add({"optim.adamw", Backend::kCpu, narrow, &AdamW<float>});
}

}  // namespace moe::kernels
