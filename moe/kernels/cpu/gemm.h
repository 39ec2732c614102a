// Matrix products on the CPU: oneDNN for float, OpenBLAS for double, one thread. And the mapping of einsums
// to them.
//
//   Gemm<float>(false, true, m, n, k, 1, a, lda, b, ldb, 0, c, ldc);   // c[m, n] = a[m, k] b[n, k]^T
//
// Row-major throughout. Thread-safe.
#pragma once

#include <cstdint>

#include "absl/container/inlined_vector.h"
#include "moe/kernels/cpu/bf16_product.h"

namespace moe::kernels {

// c = alpha op(a) op(b) + beta c. op(a) is m x k: stored [m, lda], or [k, lda] with trans_a. beta = 0 does
// not read c. Any of m, n, k may be 0.
template <typename T>
void Gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
          const T* b, int64_t ldb, T beta, T* c, int64_t ldc);

// c = sum of products of a and b over the factors that c lacks. A factor has an extent and a stride in each,
// 0 where it is absent. Every factor must be in at least two of the three.
struct ContractionFactor {
  int64_t extent;
  int64_t a, b, c;  // strides in elements
};
using ContractionFactors = absl::InlinedVector<ContractionFactor, 8>;

// False if the strides admit no GEMM, or if one GEMM would be smaller than `least` multiplications; then c
// holds nothing of use. With accumulate, adds to c. In, Out: float and float, double and double, and where
// there is a product of bf16 matrices (bf16_product.h) Bf16 and float, Bf16 and Bf16; the last of these adds
// nothing up from one GEMM to the next, which would round in between, and says false.
template <typename In, typename Out = In>
bool ContractByGemm(const ContractionFactors& factors, const In* a, const In* b, Out* c, bool accumulate,
                    int64_t least = 64);

}  // namespace moe::kernels
