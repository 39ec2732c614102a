#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/base/status.h"
#include "moe/kernels/loops.h"
#include "moe/kernels/reference/families.h"
#include "moe/kernels/update_check.h"

namespace moe::kernels {
namespace {

template <typename T>
absl::Status Accumulate(KernelContext& c) {
  return Map<T, 2>(c, [](const auto& x) { return x[0] + x[1]; });
}

template <typename T>
absl::Status Clip(KernelContext& c) {
  const double max_norm = c.node->Float("max_norm");
  return MapN<T, 1, 3>(c, [max_norm](const auto& x) {
    const double norm = std::sqrt(x[0]);
    const bool finite = std::isfinite(norm);
    const double factor = max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
    return std::array<double, 3>{norm, finite ? factor : 0.0, finite ? 1.0 : 0.0};
  });
}

template <typename T>
absl::Status AdamW(KernelContext& c) {
  const double beta1 = c.node->Float("beta1"), beta2 = c.node->Float("beta2"), eps = c.node->Float("eps"),
               decay = c.node->Float("weight_decay");
  const double largest = LargestOf(c.out[0].dtype);
  double rate = 0;
  bool fits = true;
  // Operands: p, gradient, m, v, factor, finite, learning_rate, bias1, bias2.
  RETURN_IF_ERROR((MapN<T, 9, 3>(c, [&, beta1, beta2, eps, decay](const auto& x) {
    const std::array<double, 3> old = {x[0], x[2], x[3]};
    if (x[5] == 0) return old;
    rate = x[6];
    const double g = x[4] * x[1];
    const double m = beta1 * x[2] + (1 - beta1) * g;
    const double v = beta2 * x[3] + (1 - beta2) * g * g;
    const double p = x[0] - x[6] * (m / x[7] / (std::sqrt(v / x[8]) + eps) + decay * x[0]);
    if (std::abs(p) <= largest && static_cast<T>(v) <= std::numeric_limits<T>::max()) {
      return std::array<double, 3>{p, m, v};
    }
    fits = fits && m == 0 && x[0] == 0;
    return old;
  })));
  return fits ? absl::OkStatus() : UpdateNotFinite(rate);
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  auto add = [&](const char* op, KernelFn fn) { r.Add({op, Backend::kReference, dtype, fn}); };
  add("optim.accumulate", &Accumulate<T>);
  add("optim.adamw", &AdamW<T>);
  add("optim.clip", &Clip<T>);
}

}  // namespace

void RegisterReferenceOptim(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
  r.Add({"optim.accumulate", Backend::kReference, DType::kS32, &Accumulate<int32_t>});
}

}  // namespace moe::kernels
