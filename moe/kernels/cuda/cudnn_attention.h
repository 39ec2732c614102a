// Causal attention by index through cuDNN's graphs: the forward and the backward of nn.attention with
// library = "cudnn". Plain data and host code; the library does the rest.
//
//   const CudnnAttention a = {.batch = b, .s = s, .kv_heads = k, .per_kv = g, .d = d, .dtype = DType::kBF16};
//   RETURN_IF_ERROR(CheckCudnnAttention(a));
//   RETURN_IF_ERROR(RunCudnnAttention(a, {q, k, v, o, lse}, workspace, stream));
//
// The graphs are those that cuDNN knows as one kernel each (the names in them are those of Dao 2023):
// products, a mask of indices, softmax. The backward is deterministic, which costs it the matrix of a head's
// dP in bf16 as workspace; so it runs in pieces of whole samples, or of a sample's heads, that bound it.
// Gradients of keys and values are rounded to `dtype` for each head, and then summed over the heads that
// share them.
//
// Plans are made once for each shape and device and kept. Thread-safe.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/device/cuda/cuda.h"
#include "moe/ir/types.h"
#include "moe/kernels/cuda/cudnn_graph.h"

namespace moe::kernels {

// q, o, dy, dq [batch, s, kv_heads * per_kv, d]; k, v, dk, dv [batch, s, kv_heads, d]. The log-sum-exp is
// [batch, s, heads] for the forward, and [batch, heads, s] for the backward, in f32.
struct CudnnAttention {
  int64_t batch = 0, s = 0, kv_heads = 0, per_kv = 1, d = 0;
  DType dtype = DType::kBF16;
  int64_t piece_bytes = int64_t{128} << 20;  // of a piece of the backward, where one can be that small

  int64_t heads() const { return kv_heads * per_kv; }
  friend auto operator<=>(const CudnnAttention&, const CudnnAttention&) = default;
};

// Unimplemented for what cuDNN does not take, naming it: other dtypes than bf16 and f16, heads that are no
// multiple of 8 or beyond 256.
absl::Status CheckCudnnAttention(const CudnnAttention& a);

// A part of the backward: so many samples with all heads, or one with so many of its keys' heads.
struct CudnnPiece {
  int64_t batch = 0, kv_heads = 0;
};
// The largest whose workspace is no more than piece_bytes, or else one head of one sample's keys.
CudnnPiece CudnnPieceOf(const CudnnAttention& a);
// Bytes that cuDNN is given; 9.19 and 9.26 need no more for sm_90.
int64_t CudnnForwardWorkspace(const CudnnAttention& a);
int64_t CudnnBackwardWorkspace(const CudnnAttention& a);

// For the device alone: makes plans without running them. Errors: of LoadCudnn; what cuDNN refuses.
absl::StatusOr<std::unique_ptr<CudnnPlan>> CudnnForwardPlan(const CudnnApi* cudnn, const CudnnAttention& a,
                                                            const CudnnDevice& device);
absl::StatusOr<std::unique_ptr<CudnnPlan>> CudnnBackwardPlan(const CudnnApi* cudnn, const CudnnAttention& a,
                                                             const CudnnDevice& device);

// Loads the library and makes the plans for the current device, so that what is missing is said before
// anything runs.
absl::Status PrepareCudnnAttention(const CudnnAttention& a, bool backward);

struct CudnnForwardData {
  void *q, *k, *v, *o, *lse;
};
absl::Status RunCudnnAttention(const CudnnAttention& a, const CudnnForwardData& x, void* workspace,
                               cudaStream_t stream);
struct CudnnBackwardData {
  void *q, *k, *v, *o, *lse, *dy, *dq, *dk, *dv;
};
absl::Status RunCudnnAttentionGrad(const CudnnAttention& a, const CudnnBackwardData& x, void* workspace,
                                   cudaStream_t stream);

}  // namespace moe::kernels
