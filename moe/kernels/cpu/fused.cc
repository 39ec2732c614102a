#include <algorithm>
#include <cmath>

#include "moe/kernels/cpu/families.h"
#include "moe/kernels/cpu/simd.h"
#include "moe/kernels/loops.h"

namespace moe {
namespace {

template <typename T>
absl::Status AddRmsNorm(KernelContext& c) {
  const int64_t h = c.Extent("h"), rows = c.Extent("b") * c.Extent("s");
  const double eps = c.node->Float("eps");
  const Simd<T>& simd = Simd<T>::Get();
  for (int64_t i = 0; i < rows; ++i) {
    T* sum = c.out[0].As<T>() + i * h;
    simd.add(c.in[0].As<T>() + i * h, c.in[1].As<T>() + i * h, sum, h);
    const double r = 1 / std::sqrt(static_cast<double>(simd.dot(sum, sum, h)) / h + eps);
    simd.scaled_mul(static_cast<T>(r), sum, c.in[2].As<T>(), c.out[1].As<T>() + i * h, h);
  }
  return absl::OkStatus();
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  r.Add({"nn.add_rms_norm", Backend::kCpu, dtype, &AddRmsNorm<T>});
}

}  // namespace

void RegisterCpuFused(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
}

}  // namespace moe
