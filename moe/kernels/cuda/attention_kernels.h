// Attention in blocks of queries and keys (Dao 2023, FlashAttention-2): scores of a tile of queries and a
// tile of keys are in registers, with running maxima and sums, and no matrix of all scores exists. For
// nn.attention and nn.attention_grad (attention.cu), in one dtype of shared memory and tensor cores each.
//
//   template absl::Status LaunchAttention<__nv_bfloat16>(const AttentionArgs& args, cudaStream_t stream);
//
// A warp has 16 rows of a tile. Heads of d elements are padded with zeros to kWidth in shared memory. A tile
// of keys that no query of a tile may see is skipped, whatever the positions are. The gradient computes
// scores twice, once with queries and once with keys as rows, so that every sum has one owner: no atomics,
// the same bits each time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/device/cuda/cuda.h"
#include "moe/kernels/cuda/attention_launch.h"
#include "moe/kernels/cuda/tile_copy.h"
#include "moe/kernels/cuda/vec.h"
#include "moe/kernels/cuda/warp_product.h"

namespace moe::kernels {

namespace attention_internal {

constexpr float kMasked = -1e30f;  // finite: no NaN from differences
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

template <typename T, int kWidth_, int kTile_>
struct Tiling {
  static constexpr int kWidth = kWidth_, kTile = kTile_, kThreads = kTile * 2;
  static constexpr int kPad = 16 / sizeof(T);
  static constexpr int kPitch = kWidth + kPad, kScorePitch = kTile + kPad;
  static constexpr int kElements = kTile * kPitch,
                       kScores = kTile * kScorePitch;  // of tiles in shared memory
  using Scores = WarpSums<1, kTile / 8>;
  using Rows = WarpSums<1, kWidth / 8>;

  static __device__ __forceinline__ void Copy(T *to, const MatrixView &from, int64_t row, int64_t rows,
                                              int64_t d) {
    CopyTile<T, kTile, kWidth, kPitch, kThreads>(to, from, row, 0, rows, d);
  }
};

__device__ __forceinline__ int Lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int WarpRow() { return threadIdx.x / 32 * 16; }
// The row and column of what a lane holds in sums.x[0][j][l].
__device__ __forceinline__ int RowOf(int l) { return l / 2 * 8 + Lane() / 4; }
__device__ __forceinline__ int ColumnOf(int j, int l) { return j * 8 + Lane() % 4 * 2 + l % 2; }

__device__ __forceinline__ MatrixView HeadOf(const Reals &x, const AttentionArgs &a, int64_t sample,
                                             int64_t head, int64_t length, int64_t heads) {
  const int64_t at = (sample * length * heads + head) * a.d;
  return {static_cast<const char *>(x.data) + at * (x.storage == Storage::kF32 ? 4 : 2), heads * a.d,
          x.storage, a.vectors};
}

// The last of n positions, and the first; all lanes get it.
__device__ __forceinline__ int Latest(const int32_t *positions, int64_t n) {
  int latest = INT32_MIN;
  for (int64_t i = Lane(); i < n; i += 32) latest = max(latest, positions[i]);
  for (int step = 16; step > 0; step /= 2) latest = max(latest, __shfl_xor_sync(0xffffffffu, latest, step));
  return latest;
}
__device__ __forceinline__ int Earliest(const int32_t *positions, int64_t n) {
  int earliest = INT32_MAX;
  for (int64_t i = Lane(); i < n; i += 32) earliest = min(earliest, positions[i]);
  for (int step = 16; step > 0; step /= 2)
    earliest = min(earliest, __shfl_xor_sync(0xffffffffu, earliest, step));
  return earliest;
}

// Writes the rows of a warp, times `by` of each half of them.
template <typename Rows>
__device__ __forceinline__ void StoreRows(const Rows &rows, const Reals &to, const AttentionArgs &a,
                                          int64_t sample, int64_t head, int64_t heads, int64_t first,
                                          int64_t length, const float (&by)[2]) {
  const bool pairs = a.d % 2 == 0;
#pragma unroll
  for (int j = 0; j < static_cast<int>(sizeof(rows.x[0]) / sizeof(rows.x[0][0])); ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t row = first + WarpRow() + RowOf(2 * h), column = ColumnOf(j, 0);
      if (row >= length || column >= a.d) continue;
      const int64_t at = ((sample * length + row) * heads + head) * a.d + column;
      if (column + 1 < a.d) {
        StorePair(to, at, rows.x[0][j][2 * h] * by[h], rows.x[0][j][2 * h + 1] * by[h], pairs);
      } else {
        StoreOne(to, at, rows.x[0][j][2 * h] * by[h]);
      }
    }
  }
}

template <typename T, typename Tiles>
__device__ __forceinline__ void KeepScores(const typename Tiles::Scores &scores, T *to) {
#pragma unroll
  for (int j = 0; j < Tiles::kTile / 8; ++j) {
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      to[(WarpRow() + RowOf(l)) * Tiles::kScorePitch + ColumnOf(j, l)] = Narrow<T>(scores.x[0][j][l]);
    }
  }
  __syncwarp();  // a warp reads no rows but its own
}

template <typename T, typename Tiles>
__global__ void __launch_bounds__(Tiles::kThreads) ForwardKernel(AttentionArgs a) {
  constexpr int kTile = Tiles::kTile;
  MOE_DYNAMIC_SHARED(T, shared);
  T *const q_tile = shared, *const k_tile = q_tile + Tiles::kElements,
           *const v_tile = k_tile + Tiles::kElements, *const p_tile = v_tile + Tiles::kElements;
  const int64_t tiles = (a.s + kTile - 1) / kTile, heads = a.kv_heads * a.per_kv;
  const int64_t first = (tiles - 1 - blockIdx.x % tiles) * kTile;  // those with most keys begin
  const int64_t head = blockIdx.x / tiles % heads, sample = blockIdx.x / tiles / heads;
  const int32_t *const q_positions = a.q_positions + sample % a.blocks * a.s, *const k_positions =
                                                                                  a.k_positions +
                                                                                  sample % a.blocks * a.t;
  const MatrixView q = HeadOf(a.q, a, sample, head, a.s, heads),
                   k = HeadOf(a.k, a, sample, head / a.per_kv, a.t, a.kv_heads),
                   v = HeadOf(a.v, a, sample, head / a.per_kv, a.t, a.kv_heads);
  const int64_t queries = a.s - first < kTile ? a.s - first : kTile;
  const int latest = Latest(q_positions + first, queries);
  int mine[2];  // the positions of this lane's rows
  for (int h = 0; h < 2; ++h) {
    const int64_t row = WarpRow() + RowOf(2 * h);
    mine[h] = row < queries ? q_positions[first + row] : INT32_MIN;
  }
  // The next tile of keys of which some query sees any; all threads of the block find the same.
  const auto next = [&](int64_t key) {
    for (; key < a.t; key += kTile) {
      bool sees = false;
      for (int64_t i = key + Lane(); i < key + kTile && i < a.t; i += 32) sees |= k_positions[i] <= latest;
      if (__any_sync(0xffffffffu, sees)) break;
    }
    return key;
  };

  typename Tiles::Rows sums;
  sums.Clear();
  float max_of[2] = {kMasked, kMasked}, sum_of[2] = {0, 0};
  const float scale = a.scale * kLog2E;
  int64_t key = next(0);
  Tiles::Copy(q_tile, q, first, a.s, a.d);
  if (key < a.t) Tiles::Copy(k_tile, k, key, a.t, a.d);
  CommitCopies();
  if (key < a.t) Tiles::Copy(v_tile, v, key, a.t, a.d);
  CommitCopies();
  while (key < a.t) {
    const int64_t after = next(key + kTile);
    WaitForCopies<1>();  // keys are there, values may not be
    __syncthreads();
    typename Tiles::Scores scores;
    scores.Clear();
    AddProduct<T, true, true>(scores, q_tile + WarpRow() * Tiles::kPitch, Tiles::kPitch, k_tile,
                              Tiles::kPitch, Tiles::kWidth);
    __syncthreads();
    if (after < a.t) Tiles::Copy(k_tile, k, after, a.t, a.d);
    CommitCopies();

    float tile_max[2] = {kMasked, kMasked};
    uint32_t seen[2] = {0, 0};  // a bit for each score of a row
    static_assert(kTile / 4 <= 32);
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t at = key + ColumnOf(j, c);
        const bool exists = at < a.t;
        const int position = exists ? k_positions[at] : 0;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float &x = scores.x[0][j][2 * h + c];
          x *= scale;
          if (!exists || position > mine[h]) continue;
          seen[h] |= 1u << (2 * j + c);
          tile_max[h] = fmaxf(tile_max[h], x);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      tile_max[h] = fmaxf(tile_max[h], __shfl_xor_sync(0xffffffffu, tile_max[h], 1));
      tile_max[h] = fmaxf(tile_max[h], __shfl_xor_sync(0xffffffffu, tile_max[h], 2));
      const float larger = fmaxf(max_of[h], tile_max[h]), shrink = exp2f(max_of[h] - larger);
      max_of[h] = larger;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kTile / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float &x = scores.x[0][j][2 * h + c];
          x = seen[h] >> (2 * j + c) & 1u ? exp2f(x - larger) : 0.0f;
          sum += x;
        }
      }
      sum_of[h] = sum_of[h] * shrink + sum;  // of this lane's columns
#pragma unroll
      for (int j = 0; j < Tiles::kWidth / 8; ++j) {
        sums.x[0][j][2 * h] *= shrink;
        sums.x[0][j][2 * h + 1] *= shrink;
      }
    }
    KeepScores<T, Tiles>(scores, p_tile);
    WaitForCopies<1>();  // values are there, the next keys may not be
    __syncthreads();
    AddProduct<T, true, false>(sums, p_tile + WarpRow() * Tiles::kScorePitch, Tiles::kScorePitch, v_tile,
                               Tiles::kPitch, kTile);
    __syncthreads();
    if (after < a.t) Tiles::Copy(v_tile, v, after, a.t, a.d);
    CommitCopies();
    key = after;
  }
  WaitForCopies<0>();
  float by[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = sum_of[h];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    by[h] = sum != 0 ? 1 / sum : 0;
    const int64_t row = WarpRow() + RowOf(2 * h);
    if (Lane() % 4 == 0 && row < queries) {
      a.lse[(sample * a.s + first + row) * heads + head] =
          sum != 0 ? (max_of[h] + log2f(sum)) * kLn2 : kMasked;
    }
  }
  StoreRows(sums, a.o, a, sample, head, heads, first, a.s, by);
}

// delta = the sum over d of dy o: one warp for each query of a head. A template, as it is in a header.
template <typename Args>
__global__ void DeltaKernel(Args a) {
  const int64_t rows = a.batch * a.s * a.kv_heads * a.per_kv;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; row < rows;
       row += warps) {
    float sum = 0;
    for (int64_t i = Lane(); i < a.d; i += 32)
      sum += LoadOne(a.dy, row * a.d + i) * LoadOne(a.o, row * a.d + i);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (Lane() == 0) a.delta[row] = sum;
  }
}

// Of a score with the log-sum-exp and delta of its query: p, and the gradient of the score.
struct ScoreGrad {
  float p, ds;
};
__device__ __forceinline__ ScoreGrad GradOf(float score, float dp, float lse, float delta, float scale,
                                            bool sees) {
  const float p = sees ? exp2f((score * scale - lse) * kLog2E) : 0.0f;
  return {p, p * (dp - delta) * scale};
}

// dk and dv of a tile of keys: rows are keys.
template <typename T, typename Tiles>
__global__ void __launch_bounds__(Tiles::kThreads) KeyGradKernel(AttentionArgs a) {
  constexpr int kTile = Tiles::kTile;
  MOE_DYNAMIC_SHARED(T, shared);
  T *const k_tile = shared, *const v_tile = k_tile + Tiles::kElements,
           *const q_tile = v_tile + Tiles::kElements, *const dy_tile = q_tile + Tiles::kElements,
           *const p_tile = dy_tile + Tiles::kElements, *const ds_tile = p_tile + Tiles::kScores;
  __shared__ float lse_of[kTile], delta_of[kTile];
  __shared__ int position_of[kTile];
  const int64_t tiles = (a.t + kTile - 1) / kTile, heads = a.kv_heads * a.per_kv;
  const int64_t first = blockIdx.x % tiles * kTile, kv_head = blockIdx.x / tiles % a.kv_heads,
                sample = blockIdx.x / tiles / a.kv_heads;
  const int32_t *const q_positions = a.q_positions + sample % a.blocks * a.s, *const k_positions =
                                                                                  a.k_positions +
                                                                                  sample % a.blocks * a.t;
  const int64_t keys = a.t - first < kTile ? a.t - first : kTile;
  const int earliest = Earliest(k_positions + first, keys);
  int mine[2];
  bool exists[2];
  for (int h = 0; h < 2; ++h) {
    const int64_t row = WarpRow() + RowOf(2 * h);
    exists[h] = row < keys;
    mine[h] = exists[h] ? k_positions[first + row] : 0;
  }
  Tiles::Copy(k_tile, HeadOf(a.k, a, sample, kv_head, a.t, a.kv_heads), first, a.t, a.d);
  Tiles::Copy(v_tile, HeadOf(a.v, a, sample, kv_head, a.t, a.kv_heads), first, a.t, a.d);
  CommitCopies();
  typename Tiles::Rows dk, dv;
  dk.Clear();
  dv.Clear();
  for (int64_t head = kv_head * a.per_kv; head < (kv_head + 1) * a.per_kv; ++head) {
    const MatrixView q = HeadOf(a.q, a, sample, head, a.s, heads),
                     dy = HeadOf(a.dy, a, sample, head, a.s, heads);
    for (int64_t query = 0; query < a.s; query += kTile) {
      bool sees = false;
      for (int64_t i = query + Lane(); i < query + kTile && i < a.s; i += 32)
        sees |= q_positions[i] >= earliest;
      if (!__any_sync(0xffffffffu, sees)) continue;
      __syncthreads();  // the tile before this one has been read
      Tiles::Copy(q_tile, q, query, a.s, a.d);
      Tiles::Copy(dy_tile, dy, query, a.s, a.d);
      CommitCopies();
      for (int i = threadIdx.x; i < kTile; i += Tiles::kThreads) {
        const bool there = query + i < a.s;
        const int64_t at = (sample * a.s + query + i) * heads + head;
        lse_of[i] = there ? a.lse[at] : 0.0f;
        delta_of[i] = there ? a.delta[at] : 0.0f;
        position_of[i] = there ? q_positions[query + i] : INT32_MIN;
      }
      WaitForCopies<0>();
      __syncthreads();
      typename Tiles::Scores scores, dp;
      scores.Clear();
      dp.Clear();
      AddProduct<T, true, true>(scores, k_tile + WarpRow() * Tiles::kPitch, Tiles::kPitch, q_tile,
                                Tiles::kPitch, Tiles::kWidth);
      AddProduct<T, true, true>(dp, v_tile + WarpRow() * Tiles::kPitch, Tiles::kPitch, dy_tile, Tiles::kPitch,
                                Tiles::kWidth);
#pragma unroll
      for (int j = 0; j < kTile / 8; ++j) {
#pragma unroll
        for (int l = 0; l < 4; ++l) {
          const int column = ColumnOf(j, l);
          const bool visible = exists[l / 2] && query + column < a.s && mine[l / 2] <= position_of[column];
          const ScoreGrad g =
              GradOf(scores.x[0][j][l], dp.x[0][j][l], lse_of[column], delta_of[column], a.scale, visible);
          scores.x[0][j][l] = g.p;
          dp.x[0][j][l] = g.ds;
        }
      }
      KeepScores<T, Tiles>(scores, p_tile);
      KeepScores<T, Tiles>(dp, ds_tile);
      AddProduct<T, true, false>(dv, p_tile + WarpRow() * Tiles::kScorePitch, Tiles::kScorePitch, dy_tile,
                                 Tiles::kPitch, kTile);
      AddProduct<T, true, false>(dk, ds_tile + WarpRow() * Tiles::kScorePitch, Tiles::kScorePitch, q_tile,
                                 Tiles::kPitch, kTile);
    }
  }
  WaitForCopies<0>();
  const float one[2] = {1, 1};
  StoreRows(dk, a.dk, a, sample, kv_head, a.kv_heads, first, a.t, one);
  StoreRows(dv, a.dv, a, sample, kv_head, a.kv_heads, first, a.t, one);
}

// dq of a tile of queries: rows are queries.
template <typename T, typename Tiles>
__global__ void __launch_bounds__(Tiles::kThreads) QueryGradKernel(AttentionArgs a) {
  constexpr int kTile = Tiles::kTile;
  MOE_DYNAMIC_SHARED(T, shared);
  T *const q_tile = shared, *const dy_tile = q_tile + Tiles::kElements,
           *const k_tile = dy_tile + Tiles::kElements, *const v_tile = k_tile + Tiles::kElements,
           *const ds_tile = v_tile + Tiles::kElements;
  const int64_t tiles = (a.s + kTile - 1) / kTile, heads = a.kv_heads * a.per_kv;
  const int64_t first = (tiles - 1 - blockIdx.x % tiles) * kTile, head = blockIdx.x / tiles % heads,
                sample = blockIdx.x / tiles / heads, kv_head = head / a.per_kv;
  const int32_t *const q_positions = a.q_positions + sample % a.blocks * a.s, *const k_positions =
                                                                                  a.k_positions +
                                                                                  sample % a.blocks * a.t;
  const int64_t queries = a.s - first < kTile ? a.s - first : kTile;
  const int latest = Latest(q_positions + first, queries);
  int mine[2];
  float lse[2], delta[2];
  for (int h = 0; h < 2; ++h) {
    const int64_t row = WarpRow() + RowOf(2 * h), at = (sample * a.s + first + row) * heads + head;
    mine[h] = row < queries ? q_positions[first + row] : INT32_MIN;
    lse[h] = row < queries ? a.lse[at] : 0.0f;
    delta[h] = row < queries ? a.delta[at] : 0.0f;
  }
  const MatrixView k = HeadOf(a.k, a, sample, kv_head, a.t, a.kv_heads),
                   v = HeadOf(a.v, a, sample, kv_head, a.t, a.kv_heads);
  Tiles::Copy(q_tile, HeadOf(a.q, a, sample, head, a.s, heads), first, a.s, a.d);
  Tiles::Copy(dy_tile, HeadOf(a.dy, a, sample, head, a.s, heads), first, a.s, a.d);
  CommitCopies();
  typename Tiles::Rows dq;
  dq.Clear();
  for (int64_t key = 0; key < a.t; key += kTile) {
    bool sees = false;
    for (int64_t i = key + Lane(); i < key + kTile && i < a.t; i += 32) sees |= k_positions[i] <= latest;
    if (!__any_sync(0xffffffffu, sees)) continue;
    __syncthreads();  // the tile before this one has been read
    Tiles::Copy(k_tile, k, key, a.t, a.d);
    Tiles::Copy(v_tile, v, key, a.t, a.d);
    CommitCopies();
    WaitForCopies<0>();
    __syncthreads();
    typename Tiles::Scores scores, dp;
    scores.Clear();
    dp.Clear();
    AddProduct<T, true, true>(scores, q_tile + WarpRow() * Tiles::kPitch, Tiles::kPitch, k_tile,
                              Tiles::kPitch, Tiles::kWidth);
    AddProduct<T, true, true>(dp, dy_tile + WarpRow() * Tiles::kPitch, Tiles::kPitch, v_tile, Tiles::kPitch,
                              Tiles::kWidth);
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        const int64_t at = key + ColumnOf(j, l);
        const bool visible = at < a.t && k_positions[at] <= mine[l / 2];
        dp.x[0][j][l] =
            GradOf(scores.x[0][j][l], dp.x[0][j][l], lse[l / 2], delta[l / 2], a.scale, visible).ds;
      }
    }
    KeepScores<T, Tiles>(dp, ds_tile);
    AddProduct<T, true, false>(dq, ds_tile + WarpRow() * Tiles::kScorePitch, Tiles::kScorePitch, k_tile,
                               Tiles::kPitch, kTile);
  }
  WaitForCopies<0>();
  const float one[2] = {1, 1};
  StoreRows(dq, a.dq, a, sample, head, heads, first, a.s, one);
}

// Calls f(Tiling) with the narrowest width that holds the heads; short sequences of narrow heads take small
// tiles.
template <typename T, typename F>
absl::Status ForTiling(const AttentionArgs &a, F f) {
  const int64_t d = a.d;
  if (d <= 32 && std::max(a.s, a.t) <= 32) return f(Tiling<T, 32, 16>());
  if (d <= 64) return f(Tiling<T, 64, 64>());
  if (d <= 128) return f(Tiling<T, 128, 64>());
  if (d <= kMaxHeadDim) return f(Tiling < T, 256, sizeof(T) == 4 ? 32 : 64 > ());
  return absl::UnimplementedError(
      absl::StrCat("attention on CUDA takes heads of at most ", kMaxHeadDim, " elements, not ", d));
}

inline dim3 Blocks(int64_t n) { return dim3(static_cast<unsigned>(n)); }

}  // namespace attention_internal

template <typename T>
absl::Status LaunchAttention(const AttentionArgs &a, cudaStream_t stream) {
  using namespace attention_internal;  // NOLINT
  return ForTiling<T>(a, [&](auto tiling) {
    using Tiles = decltype(tiling);
    const int64_t tiles = (a.s + Tiles::kTile - 1) / Tiles::kTile;
    const size_t bytes = (3 * Tiles::kElements + Tiles::kScores) * sizeof(T);
    return MOE_LAUNCH((ForwardKernel<T, Tiles>), Blocks(a.batch * a.kv_heads * a.per_kv * tiles),
                      dim3(Tiles::kThreads), bytes, stream, a);
  });
}

template <typename T>
absl::Status LaunchAttentionGrad(const AttentionArgs &a, cudaStream_t stream) {
  using namespace attention_internal;  // NOLINT
  const int64_t queries = a.batch * a.s * a.kv_heads * a.per_kv;
  RETURN_IF_ERROR(MOE_LAUNCH((DeltaKernel<AttentionArgs>),
                             Blocks(std::min<int64_t>((queries + 7) / 8, 1 << 16)), dim3(256), 0, stream, a));
  return ForTiling<T>(a, [&](auto tiling) {
    using Tiles = decltype(tiling);
    const int64_t q_tiles = (a.s + Tiles::kTile - 1) / Tiles::kTile,
                  k_tiles = (a.t + Tiles::kTile - 1) / Tiles::kTile;
    const size_t k_bytes = (4 * Tiles::kElements + 2 * Tiles::kScores) * sizeof(T),
                 q_bytes = (4 * Tiles::kElements + Tiles::kScores) * sizeof(T);
    RETURN_IF_ERROR(MOE_LAUNCH((KeyGradKernel<T, Tiles>), Blocks(a.batch * a.kv_heads * k_tiles),
                               dim3(Tiles::kThreads), k_bytes, stream, a));
    return MOE_LAUNCH((QueryGradKernel<T, Tiles>), Blocks(a.batch * a.kv_heads * a.per_kv * q_tiles),
                      dim3(Tiles::kThreads), q_bytes, stream, a);
  });
}

}  // namespace moe::kernels
