// AdamW of one tensor, for optim.adamw and optim.multi_adamw. In place where outputs alias inputs.
// Thread-safe.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "moe/device/convert.h"
#include "moe/kernels/cpu/simd.h"
#include "moe/kernels/kernel.h"
#include "moe/kernels/update_check.h"

namespace moe::kernels {

// scalars: factor, finite, learning_rate, bias1, bias2. in: p, gradient, m, v. out: p, m, v. `copy`: the new
// p again, or null. T is f32 or f64; where it is f32 each tensor may be bf16 or f16 instead and goes through
// T in blocks. beta1, beta2 and eps are attributes of the node.
template <typename T>
class AdamWTensor {
 public:
  AdamWTensor(const Node& n, double weight_decay, absl::Span<const Tensor> scalars) {
    const auto scalar = [&](int i) { return LoadElement(scalars[i].dtype, scalars[i].data, 0); };
    finite_ = scalar(1) != 0;
    const double beta1 = n.Float("beta1"), beta2 = n.Float("beta2");
    step_ = {static_cast<T>(scalar(0)),     static_cast<T>(scalar(2)),      static_cast<T>(beta1),
             static_cast<T>(beta2),         static_cast<T>(n.Float("eps")), static_cast<T>(weight_decay),
             static_cast<T>(1 / scalar(3)), static_cast<T>(1 / scalar(4)),  static_cast<T>(1 - beta1),
             static_cast<T>(1 - beta2),     std::numeric_limits<T>::max()};
  }

  // FailedPrecondition if an updated weight is not finite where it is stored; it stays as it was.
  absl::Status Run(std::array<const Tensor*, 4> in, std::array<const Tensor*, 3> out,
                   const Tensor* copy) const {
    AdamWStep<T> step = step_;
    for (const Tensor* t : {out[0], copy}) {
      if (t != nullptr) step.largest = std::min(step.largest, static_cast<T>(LargestOf(t->dtype)));
    }
    bool fits = true;
    const int64_t size = out[0]->elements();
    const auto whole = [](const Tensor* t) { return t == nullptr || t->dtype == kWide; };
    const bool plain = std::all_of(in.begin(), in.end(), whole) &&
                       std::all_of(out.begin(), out.end(), whole) && copy == nullptr;
    const int64_t block = plain ? std::max<int64_t>(size, 1) : kBlock;
    T buffers[7][kBlock];
    for (int64_t begin = 0; begin < size; begin += block) {
      const int64_t n = std::min(block, size - begin);
      std::array<const T*, 4> x;
      std::array<T*, 3> y;
      for (int i = 0; i < 4; ++i) x[i] = Read(*in[i], begin, n, buffers[i]);
      for (int i = 0; i < 3; ++i) y[i] = whole(out[i]) ? out[i]->As<T>() + begin : buffers[4 + i];
      if (finite_) {
        fits = Simd<T>::Get().adamw(step, x[0], x[1], x[2], x[3], y[0], y[1], y[2], n) && fits;
      } else {  // everything stays as it is
        const T* const from[3] = {x[0], x[2], x[3]};
        for (int i = 0; i < 3; ++i) {
          if (from[i] != y[i]) std::copy_n(from[i], n, y[i]);
        }
      }
      for (int i = 0; i < 3; ++i) Write(y[i], begin, n, *out[i]);
      if (copy != nullptr) Write(y[0], begin, n, *copy);
    }
    return fits ? absl::OkStatus() : UpdateNotFinite(static_cast<double>(step.learning_rate));
  }

 private:
  static constexpr DType kWide = std::is_same_v<T, float> ? DType::kF32 : DType::kF64;
  static constexpr int64_t kBlock = 1024;  // elements: buffers stay in the cache

  static char* At(const Tensor& t, int64_t begin) {
    return static_cast<char*>(t.data) + begin * ByteSize(t.dtype);
  }
  static const T* Read(const Tensor& t, int64_t begin, int64_t n, T* buffer) {
    if constexpr (std::is_same_v<T, float>) {
      if (t.dtype != kWide) {
        device::ToF32(t.dtype, At(t, begin), buffer, n);
        return buffer;
      }
    }
    return t.As<T>() + begin;
  }
  static void Write(const T* x, int64_t begin, int64_t n, const Tensor& t) {
    if constexpr (std::is_same_v<T, float>) {
      if (t.dtype != kWide) return device::FromF32(t.dtype, x, At(t, begin), n);
    }
    if (t.As<T>() + begin != x) std::copy_n(x, n, t.As<T>() + begin);
  }

  AdamWStep<T> step_;
  bool finite_;
};

}  // namespace moe::kernels
