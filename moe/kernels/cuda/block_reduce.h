// Sums, maxima and scans over the threads of a warp, a row (RowLaunch) or a block. Every thread gets the
// result. The order of a sum depends on the launch shape alone. Blocks have whole warps.
#pragma once

#include <cstdint>

#include "moe/device/cuda/cuda.h"
#include "moe/kernels/cuda/launch.h"
#include "moe/kernels/larger.h"

namespace moe::kernels {

inline constexpr unsigned kAllLanes = 0xffffffffu;

struct SumOf {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct MaxOf {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return Larger(a, b);
  }
};

template <typename T, typename Op>
__device__ inline T WarpReduce(T x, Op op) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = op(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// Over a block of blockDim.x threads. `zero` is what does not change a reduction.
template <typename T, typename Op>
__device__ inline T BlockReduce(T x, Op op, T zero) {
  __shared__ T of_warp[kMaxThreads / kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  x = WarpReduce(x, op);
  __syncthreads();  // the results of a former call have been read
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  return WarpReduce(lane < warps ? of_warp[lane] : zero, op);
}

// Over the threads of one row.
__device__ inline float RowSum(float x) {
  return blockDim.x == kWarp ? WarpReduce(x, SumOf()) : BlockReduce(x, SumOf(), 0.0f);
}
__device__ inline float RowMax(float x) {
  return blockDim.x == kWarp ? WarpReduce(x, MaxOf()) : BlockReduce(x, MaxOf(), -1e30f);
}

// The row of this thread in the grid, and how many rows the grid has at once.
__device__ inline int64_t FirstRow() { return int64_t{blockIdx.x} * blockDim.y + threadIdx.y; }
__device__ inline int64_t RowStep() { return int64_t{gridDim.x} * blockDim.y; }
// The same for FlatLaunch.
__device__ inline int64_t FirstItem() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ inline int64_t ItemStep() { return int64_t{gridDim.x} * blockDim.x; }

// The sum over the threads of the block before this one; `total` is that over all.
__device__ inline int64_t BlockExclusiveScan(int64_t x, int64_t* total) {
  __shared__ long long of_warp[kMaxThreads / kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  long long sum = x;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const long long before = __shfl_up_sync(kAllLanes, sum, offset);
    if (lane >= offset) sum += before;
  }
  __syncthreads();
  if (lane == kWarp - 1) of_warp[warp] = sum;
  __syncthreads();
  long long before = 0, all = 0;
  for (int w = 0; w < warps; ++w) {
    if (w < warp) before += of_warp[w];
    all += of_warp[w];
  }
  *total = all;
  return before + sum - x;
}

}  // namespace moe::kernels
