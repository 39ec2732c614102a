#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/kernels/loops.h"
#include "moe/kernels/reference/families.h"

namespace moe {
namespace {

template <typename T>
absl::Status AddRmsNorm(KernelContext& c) {
  const int64_t h = c.Extent("h"), rows = c.Extent("b") * c.Extent("s");
  const double eps = c.node->Float("eps");
  const T* w = c.in[2].As<T>();
  for (int64_t i = 0; i < rows; ++i) {
    T* sum = c.out[0].As<T>() + i * h;
    double squares = 0;
    for (int64_t j = 0; j < h; ++j) {
      sum[j] = static_cast<T>(static_cast<double>(c.in[0].As<T>()[i * h + j]) + c.in[1].As<T>()[i * h + j]);
      squares += static_cast<double>(sum[j]) * sum[j];
    }
    const double r = 1 / std::sqrt(squares / h + eps);
    for (int64_t j = 0; j < h; ++j) c.out[1].As<T>()[i * h + j] = static_cast<T>(sum[j] * r * w[j]);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status Router(KernelContext& c) {
  const int64_t e = c.Extent("e"), k = c.Extent("k"), tokens = c.Extent("b") * c.Extent("c") * c.Extent("t");
  const T *logits = c.in[0].As<T>(), *mask = c.in[1].As<T>();
  T *probability = c.out[0].As<T>(), *top = c.out[1].As<T>();
  int32_t *expert = c.out[2].As<int32_t>(), *count = c.out[3].As<int32_t>();
  std::fill(count, count + e, 0);
  for (int64_t i = 0; i < tokens; ++i) {
    const T* x = logits + i * e;
    T* p = probability + i * e;
    double max = -1e30, sum = 0;
    for (int64_t j = 0; j < e; ++j) max = std::max<double>(max, x[j]);
    for (int64_t j = 0; j < e; ++j) sum += std::exp(x[j] - max);
    for (int64_t j = 0; j < e; ++j) p[j] = static_cast<T>(std::exp(x[j] - max) / sum);
    std::vector<bool> taken(e, false);
    for (int64_t j = 0; j < k; ++j) {
      int64_t best = -1;
      for (int64_t n = 0; n < e; ++n) {
        if (!taken[n] && (best < 0 || p[n] > p[best])) best = n;
      }
      if (best >= 0) taken[best] = true;
      const bool routed = best >= 0 && mask[i] != 0;
      top[i * k + j] = routed ? p[best] : T(0);
      expert[i * k + j] = routed ? static_cast<int32_t>(best) : -1;
      if (routed) ++count[best];
    }
  }
  return absl::OkStatus();
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  auto add = [&](const char* op, KernelFn fn) { r.Add({op, Backend::kReference, dtype, fn}); };
  add("moe.router", &Router<T>);
  add("nn.add_rms_norm", &AddRmsNorm<T>);
}

}  // namespace

void RegisterReferenceFused(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
}

}  // namespace moe
