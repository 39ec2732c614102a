// The inner loops of the CPU kernels, over contiguous rows. One source (simd.cc) is compiled for every
// instruction set that Highway knows, and the best one that the machine has is chosen when the program
// starts.
//
//   const Simd<float>& s = Simd<float>::Get();
//   s.axpy(0.5f, x, y, n);   // y += 0.5 x
//
// Outputs may alias inputs of the same position; nothing needs alignment. Reductions run in a fixed order
// that depends on n alone, so equal inputs give equal bits. Thread-safe.
#pragma once

#include <cstdint>

namespace moe::kernels {

template <typename T>
struct AdamWStep {
  T factor, learning_rate, beta1, beta2, eps, weight_decay, inverse_bias1, inverse_bias2;
  T one_minus_beta1, one_minus_beta2;  // from double: 1 - 0.999f has lost 4 digits
  T largest;                           // magnitude of p that what holds it can hold
};

template <typename T>
struct Simd {
  static const Simd& Get();

  void (*add)(const T* x, const T* y, T* z, int64_t n);              // z = x + y
  void (*mul)(const T* x, const T* y, T* z, int64_t n);              // z = x y
  void (*scale)(const T* x, T by, T* y, int64_t n);                  // y = by x
  void (*shift)(const T* x, T by, T* y, int64_t n);                  // y = x + by
  void (*axpy)(T a, const T* x, T* y, int64_t n);                    // y += a x
  void (*scaled_mul)(T a, const T* x, const T* y, T* z, int64_t n);  // z = a x y
  T (*dot)(const T* x, const T* y, int64_t n);
  T (*max)(const T* x, int64_t n);  // -1e30 for n = 0; passes over NaN
  // y = exp(a x - b); returns the sum of y. a x - b must not exceed 80.
  T (*exp_sum)(const T* x, T a, T b, T* y, int64_t n);
  void (*silu)(const T* x, T* y, int64_t n);
  void (*silu_grad)(const T* x, const T* dy, T* dx, int64_t n);
  void (*swiglu)(const T* gate, const T* up, T* y, int64_t n);
  void (*swiglu_grad)(const T* gate, const T* up, const T* dy, T* dgate, T* dup, int64_t n);
  // Rows of n elements: r = 1 / sqrt(mean(x^2) + eps) of each, and
  //   y = r x w                   (rms_norm)
  //   dx = r dy w - k x, k = r^3 sum(x w dy) / n   (rms_norm_dx)
  //   dw += r x dy, summed over the rows           (rms_norm_dw)
  void (*rms_norm)(const T* x, const T* w, double eps, T* y, int64_t n, int64_t rows);
  void (*rms_norm_dx)(const T* x, const T* w, const T* dy, double eps, T* dx, int64_t n, int64_t rows);
  void (*rms_norm_dw)(const T* x, const T* dy, double eps, T* dw, int64_t n, int64_t rows);
  // Of each of `rows` rows, `stride` apart: (y0, y1) = (x0 cos - x1 sin, x1 cos + x0 sin), where x0 is the
  // first n elements of the row and x1 the n after it.
  void (*rotate)(const T* x, const T* cos, const T* sin, T* y, int64_t n, int64_t rows, int64_t stride);
  // ds = scale p (dp - delta)
  void (*softmax_ds)(const T* p, const T* dp, T delta, T scale, T* ds, int64_t n);
  // An element whose p would be larger than step.largest, or NaN, or whose v would not be finite, stays as it
  // is: false if there was one.
  bool (*adamw)(const AdamWStep<T>& step, const T* p, const T* g, const T* m, const T* v, T* p_out, T* m_out,
                T* v_out, int64_t n);
};

// Name of the instruction set in use: "AVX2".
const char* SimdTargetName();

}  // namespace moe::kernels
