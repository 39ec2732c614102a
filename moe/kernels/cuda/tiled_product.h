// A matrix product of any strides and storage, in f32, by tiles in shared memory: for what no library takes,
// and where there is none.
//
//   RETURN_IF_ERROR(TiledProduct(stream, tokens, words, hidden, {x, hidden, 1}, {weight, 1, hidden}, logits,
//                                words, false));
//
// The order of each sum is that of k.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "moe/kernels/cuda/vec.h"

namespace moe::kernels {

struct Matrix {
  Reals data;
  int64_t row = 0, column = 0;  // strides, in elements
};

inline Reals Shifted(Reals r, int64_t elements) {
  r.data = static_cast<char*>(r.data) + elements * (r.storage == Storage::kF32 ? 4 : 2);
  return r;
}

// c[m, n] (+)= a[m, k] b[k, n], c in f32 with rows `ldc` apart.
absl::Status TiledProduct(cudaStream_t stream, int64_t m, int64_t n, int64_t k, const Matrix& a,
                          const Matrix& b, float* c, int64_t ldc, bool accumulate);

}  // namespace moe::kernels
