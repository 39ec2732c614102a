// Loops that kernels of several families and back ends share: elementwise maps, and the general nest over the
// factors of a rule with strides (einsum, broadcast, reductions), both also over ragged values.
//
//   return Map<T>(c, [](const double* x) { return x[0] + x[1]; });
//
// Arithmetic is double whatever the storage. Results may alias operands of the same shape. No state,
// thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "moe/base/status.h"
#include "moe/kernels/kernel.h"

namespace moe::kernels {

// An operand of an elementwise op; scalars broadcast.
template <typename T>
struct Elements {
  explicit Elements(const Tensor& t) : p(t.As<T>()), stride(IsScalar(t) ? 0 : 1) {}
  double operator[](int64_t i) const { return static_cast<double>(p[i * stride]); }
  const T* p;
  int64_t stride;
};

// out[r][i] = f(operands at i)[r], for ops of N operands and R results.
template <typename T, int N, int R, typename F>
absl::Status MapN(KernelContext& c, F f) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  absl::InlinedVector<Elements<T>, N> in;
  for (int i = 0; i < N; ++i) in.emplace_back(c.in[i]);
  const int64_t n = c.out[0].elements();
  for (int64_t i = 0; i < n; ++i) {
    std::array<double, N> x;
    for (int j = 0; j < N; ++j) x[j] = in[j][i];
    const std::array<double, R> y = f(x);
    for (int j = 0; j < R; ++j) c.out[j].As<T>()[i] = static_cast<T>(y[j]);
  }
  return absl::OkStatus();
}

template <typename T, int N, typename F>
absl::Status Map(KernelContext& c, F f) {
  return MapN<T, N, 1>(c, [&](const std::array<double, N>& x) { return std::array<double, 1>{f(x)}; });
}

// Copies equal blocks along a dim: block i of the result is block from(i) of the operand.
template <typename F>
absl::Status CopyBlocks(KernelContext& c, int64_t dim, int64_t blocks, F from) {
  const Tensor& x = c.in[0];
  int64_t outer = 1, block = ByteSize(x.dtype);  // bytes of one block
  for (int64_t d = 0; d < static_cast<int64_t>(x.dims.size()); ++d) (d < dim ? outer : block) *= x.dims[d];
  block /= blocks;
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < blocks; ++i) {
      std::memcpy(c.out[0].As<char>() + (o * blocks + i) * block,
                  x.As<char>() + (o * blocks + from(i)) * block, block);
    }
  }
  return absl::OkStatus();
}

// Strides of one term (operand or result) per factor of the rule; 0 where the term lacks the factor. A ragged
// term has strides of cells for the dims before the ragged one, and of elements for the dims after it.
struct TermStrides {
  using Strides = absl::InlinedVector<int64_t, 12>;  // kernels run in the step loop, where nothing allocates
  Strides element;                                   // per factor, within the row for ragged terms
  Strides cell;                                      // per factor; ragged terms only
  int ragged_factor = -1;
  int64_t row_elements = 0;
};
TermStrides StridesOf(const FactorTerm& term, const std::vector<int64_t>& extent, int ragged_dim);

// For every element of result 0: reduces the product of all operands over the other factors, by sum or by
// max. The order of reduction is that of the rule's factors.
enum class Reduce { kSum, kMax };
template <typename T>
absl::Status ReduceProducts(KernelContext& c, Reduce reduce);
extern template absl::Status ReduceProducts<float>(KernelContext& c, Reduce reduce);
extern template absl::Status ReduceProducts<double>(KernelContext& c, Reduce reduce);

}  // namespace moe::kernels
