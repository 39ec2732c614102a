// Comparisons in which NaN is larger than every number and the same as itself: no maximum passes over one,
// and a choice of the largest takes it first.
//
//   max = Larger(max, x);
//   if (IsLarger(p[n], p[best])) best = n;
//
// On the host, and on CUDA devices.
#pragma once

namespace moe::kernels {

template <typename T>
constexpr bool IsLarger(T a, T b) {
  return a > b || (a != a && b == b);
}

template <typename T>
constexpr bool IsSame(T a, T b) {
  return a == b || (a != a && b != b);
}

template <typename T>
constexpr T Larger(T a, T b) {
  return IsLarger(b, a) ? b : a;
}

}  // namespace moe::kernels
