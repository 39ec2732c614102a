// What attention's kernels are given, and their launches, each dtype of shared memory in a source of its own.
//
//   RETURN_IF_ERROR(LaunchAttention<__nv_bfloat16>(args, stream));
//
// Unimplemented for heads of more than kMaxHeadDim elements.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "moe/device/cuda/cuda.h"
#include "moe/kernels/cuda/vec.h"

namespace moe::kernels {

constexpr int64_t kMaxHeadDim = 256;

// q, o, dy, dq [batch, s, kv_heads * per_kv, d]; k, v, dk, dv [batch, t, kv_heads, d]; lse, delta [batch, s,
// heads] in f32. Sample i has positions i % blocks of [blocks, s] and [blocks, t].
struct AttentionArgs {
  int64_t batch = 0, blocks = 1, s = 0, t = 0, kv_heads = 0, per_kv = 0, d = 0;
  float scale = 1;
  Reals q, k, v, o;
  float* lse = nullptr;
  const int32_t *q_positions = nullptr, *k_positions = nullptr;
  bool vectors = false;  // rows of all begin at multiples of 16 bytes, and are of the kernel's dtype
  // The gradient alone.
  Reals dy, dq, dk, dv;
  float* delta = nullptr;  // scratch: the sum over d of dy o
};

template <typename T>
absl::Status LaunchAttention(const AttentionArgs& args, cudaStream_t stream);
template <typename T>
absl::Status LaunchAttentionGrad(const AttentionArgs& args, cudaStream_t stream);

}  // namespace moe::kernels
