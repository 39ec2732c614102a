// AdamW of one tensor, for optim.adamw and optim.multi_adamw. In place where outputs alias inputs.
// Thread-safe.
#pragma once

#include <array>
#include <cstring>

#include "absl/types/span.h"
#include "moe/kernels/cpu/simd.h"
#include "moe/kernels/kernel.h"

namespace moe {

// scalars: factor, finite, learning_rate, bias1, bias2. in: p, gradient, m, v. out: p, m, v. beta1, beta2 and
// eps are attributes of the node.
template <typename T>
void AdamWTensor(const Node& n, double weight_decay, absl::Span<const Tensor> scalars,
                 std::array<const Tensor*, 4> in, std::array<const Tensor*, 3> out, T) {
  const auto scalar = [&](int i) { return static_cast<double>(*scalars[i].As<T>()); };
  const int64_t size = out[0]->elements();
  if (scalar(1) == 0) {  // not finite: everything stays as it is
    const int from[3] = {0, 2, 3};
    for (int i = 0; i < 3; ++i) {
      if (out[i]->data != in[from[i]]->data && size > 0)
        std::memcpy(out[i]->data, in[from[i]]->data, size * sizeof(T));
    }
    return;
  }
  const double beta1 = n.Float("beta1"), beta2 = n.Float("beta2");
  const AdamWStep<T> step{static_cast<T>(scalar(0)),      static_cast<T>(scalar(2)),
                          static_cast<T>(beta1),          static_cast<T>(beta2),
                          static_cast<T>(n.Float("eps")), static_cast<T>(weight_decay),
                          static_cast<T>(1 / scalar(3)),  static_cast<T>(1 / scalar(4)),
                          static_cast<T>(1 - beta1),      static_cast<T>(1 - beta2)};
  Simd<T>::Get().adamw(step, in[0]->As<T>(), in[1]->As<T>(), in[2]->As<T>(), in[3]->As<T>(), out[0]->As<T>(),
                       out[1]->As<T>(), out[2]->As<T>(), size);
}

}  // namespace moe
