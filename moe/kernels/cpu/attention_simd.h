// The inner loops of attention on the CPU: one head of one sample.
//
// Scores of a tile of queries and some keys stand with the queries side by side in vectors: [key, query].
// Maxima and sums over keys then need no sums across lanes, heads of any width are full vectors, and K and V
// are read where they lie, element by element; only Q (and dO) are transposed, once per tile. Keys after all
// queries of a tile are skipped in pieces of 16, so the half of a causal matrix that is zero costs little.
//
//   AttentionHead<float> head{...};
//   AttentionSimd<float>::Get().forward(head);
//
// Blockwise, with running maxima (Dao 2023). Compiled for every instruction set, like simd.h. Thread-safe.
#pragma once

#include <cstdint>

namespace moe::kernels {

template <typename T>
struct AttentionHead {
  int64_t s, t, d;             // queries, keys, width of the head
  int64_t q_stride, k_stride;  // from one position to the next; of q, o, do, dq and of k, v, dk, dv
  int64_t lse_stride;
  T scale;  // of the scores
  const T *q, *k, *v;
  const int32_t *q_positions, *k_positions;  // a query sees keys that are not after it
  T *o, *lse;                                // a query that sees no key: 0, and kAttentionMasked
  // Backward only, which reads o and lse. dq is written, dk and dv are added to.
  const T* dy;
  T *dq, *dk, *dv;
  T* workspace;
};

constexpr double kAttentionMasked = -1e30;  // finite: no NaN from differences

constexpr int64_t kAttentionQueries = 32, kAttentionKeys = 64;  // of a tile

// Elements of T.
constexpr int64_t AttentionForwardWorkspace(int64_t d) {
  return kAttentionQueries * (kAttentionKeys + 2 * d + 3);
}
constexpr int64_t AttentionBackwardWorkspace(int64_t d) {
  return kAttentionQueries * (2 * kAttentionKeys + 3 * d + 3);
}

template <typename T>
struct AttentionSimd {
  static const AttentionSimd& Get();
  void (*forward)(const AttentionHead<T>& head);
  void (*backward)(const AttentionHead<T>& head);
};

}  // namespace moe::kernels
