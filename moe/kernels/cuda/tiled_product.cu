#include <algorithm>

#include "moe/kernels/cuda/context.h"
#include "moe/kernels/cuda/tiled_product.h"

namespace moe::kernels {
namespace {

constexpr int kTile = 64, kDepth = 16, kSide = 16, kEach = kTile / kSide;  // 16 x 16 threads, 4 x 4 sums each

// One tile of an operand, transposed to [depth][row]. Threads run along the dim with the smaller stride.
__device__ void LoadTile(const Matrix& x, int64_t row0, int64_t rows, int64_t k0, int64_t k,
                         float (&tile)[kDepth][kTile + 1], bool along_rows) {
  const int thread = threadIdx.y * kSide + threadIdx.x;
  for (int i = thread; i < kTile * kDepth; i += kSide * kSide) {
    const int r = along_rows ? i % kTile : i / kDepth, d = along_rows ? i / kTile : i % kDepth;
    const bool inside = row0 + r < rows && k0 + d < k;
    tile[d][r] = inside ? LoadOne(x.data, (row0 + r) * x.row + (k0 + d) * x.column) : 0.0f;
  }
}

__global__ void TiledProductKernel(int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, float* c, int64_t ldc,
                                   bool accumulate) {
  __shared__ float ta[kDepth][kTile + 1], tb[kDepth][kTile + 1];
  const int64_t columns = (n + kTile - 1) / kTile, tiles = (m + kTile - 1) / kTile * columns;
  const Matrix bt = {b.data, b.column, b.row};
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t row0 = tile / columns * kTile, column0 = tile % columns * kTile;
    float sum[kEach][kEach] = {};
    for (int64_t k0 = 0; k0 < k; k0 += kDepth) {
      LoadTile(a, row0, m, k0, k, ta, a.row < a.column);
      LoadTile(bt, column0, n, k0, k, tb, bt.row < bt.column);
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        float x[kEach], y[kEach];
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          x[i] = ta[d][threadIdx.y + i * kSide];
          y[i] = tb[d][threadIdx.x + i * kSide];
        }
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int j = 0; j < kEach; ++j) sum[i][j] += x[i] * y[j];
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t row = row0 + threadIdx.y + i * kSide;
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int64_t column = column0 + threadIdx.x + j * kSide;
        if (row >= m || column >= n) continue;
        float* const to = c + row * ldc + column;
        *to = accumulate ? *to + sum[i][j] : sum[i][j];
      }
    }
  }
}

}  // namespace

absl::Status TiledProduct(cudaStream_t stream, int64_t m, int64_t n, int64_t k, const Matrix& a,
                          const Matrix& b, float* c, int64_t ldc, bool accumulate) {
  const int64_t tiles = CeilDiv(m, kTile) * CeilDiv(n, kTile);
  return MOE_LAUNCH(TiledProductKernel, dim3(static_cast<unsigned>(std::min(tiles, kMaxBlocks))),
                    dim3(kSide, kSide), 0, stream, m, n, k, a, b, c, ldc, accumulate);
}

}  // namespace moe::kernels
