// Elementwise kernels: R results from N operands, dense or ragged, scalars broadcast, dtypes mixed.
//
//   struct AddOf {
//     __device__ void operator()(const float (&x)[2], float (&y)[1]) const { y[0] = x[0] + x[1]; }
//   };
//   return Map<2, 1>(c, AddOf());                   // workspace: RaggedWorkspaceOf
//
// One thread takes 8 elements: all its loads are under way before the first is used. Results may lie where
// operands of the same shape do.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "moe/base/status.h"
#include "moe/kernels/cuda/block_reduce.h"
#include "moe/kernels/cuda/context.h"
#include "moe/kernels/cuda/ragged.h"
#include "moe/kernels/cuda/vec.h"

namespace moe::kernels {

__device__ inline float Sigmoid(float x) { return 1 / (1 + expf(-x)); }

template <int N, int R>
struct MapArgs {
  Reals in[N], out[R];
  bool scalar[N];
  int in_place[N], out_place[R];  // in the header; -1: dense
  int64_t elements;               // of dense ones
  const RaggedHeader* header;     // null: dense
  int64_t row_elements;
  bool aligned;
};

template <int N, int R, typename F>
__global__ void MapKernel(MapArgs<N, R> a, F f) {
  int64_t elements = a.elements;
  if (a.header != nullptr) {
    elements = a.header->rows * a.row_elements;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (a.in_place[j] >= 0) a.in[j].data = a.header->data[a.in_place[j]];
    }
#pragma unroll
    for (int j = 0; j < R; ++j) {
      if (a.out_place[j] >= 0) a.out[j].data = a.header->data[a.out_place[j]];
    }
  }
  float scalar[N];
#pragma unroll
  for (int j = 0; j < N; ++j) scalar[j] = a.scalar[j] ? LoadOne(a.in[j], 0) : 0;
  for (int64_t at = FirstItem() * kChunk; at < elements; at += ItemStep() * kChunk) {
    const int n = ChunkSize(at, elements);
    Chunk x[N], y[R];
    if (a.aligned && n == kChunk) {
      RawChunk raw[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (!a.scalar[j]) raw[j] = LoadRaw(a.in[j], at);
      }
#pragma unroll
      for (int j = 0; j < N; ++j) x[j] = a.scalar[j] ? Filled(scalar[j]) : Widen(a.in[j].storage, raw[j]);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) x[j] = a.scalar[j] ? Filled(scalar[j]) : Load(a.in[j], at, n, false);
    }
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      float in[N], out[R];
#pragma unroll
      for (int j = 0; j < N; ++j) in[j] = x[j].x[i];
      f(in, out);
#pragma unroll
      for (int j = 0; j < R; ++j) y[j].x[i] = out[j];
    }
#pragma unroll
    for (int j = 0; j < R; ++j) Store(a.out[j], at, n, a.aligned, y[j]);
  }
}

// Rows of a ragged tensor that a launch is made for; more are met by the stride of the grid.
inline int64_t LikelyRows(const Tensor& t) { return t.capacity_rows; }

template <int N, int R, typename F>
absl::Status Map(KernelContext& c, F f) {
  Workspace w(c);
  ASSIGN_OR_RETURN(const RaggedRows rows, PlaceLikeOperand(c, w));
  MapArgs<N, R> a = {};
  a.header = rows.header;
  a.aligned = true;
  for (int j = 0; j < N; ++j) {
    ASSIGN_OR_RETURN(a.in[j], RealsOf(c.in[j]));
    a.scalar[j] = IsScalar(c.in[j]) && !IsScalar(c.out[0]);
    a.in_place[j] = RaggedOperandIndex(c, j);
    if (!a.scalar[j]) a.aligned = a.aligned && HasAlignedRows(c.in[j], kChunk);
  }
  int64_t elements = 0;
  for (int j = 0; j < R; ++j) {
    ASSIGN_OR_RETURN(a.out[j], RealsOf(c.out[j]));
    a.out_place[j] = RaggedResultIndex(c, j);
    a.aligned = a.aligned && HasAlignedRows(c.out[j], kChunk);
  }
  if (c.out[0].is_ragged()) {
    a.row_elements = c.out[0].row_elements;
    elements = LikelyRows(c.out[0]) * a.row_elements;
  } else {
    a.elements = elements = c.out[0].elements();
  }
  const LaunchShape s = FlatLaunch(CeilDiv(elements, kChunk));
  return MOE_LAUNCH((MapKernel<N, R, F>), GridOf(s), BlockOf(s), 0, CudaStreamOf(c), a, f);
}

}  // namespace moe::kernels
