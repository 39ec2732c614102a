#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "moe/base/status.h"
#include "moe/device/cuda/cuda.h"
#include "moe/kernels/cuda/matrix_product.h"
#include "moe/kernels/cuda/tile_copy.h"
#include "moe/kernels/cuda/warp_product.h"

namespace moe::kernels {
namespace {

constexpr int kThreads = 256, kTile = 128;
constexpr int kWarpM = 4, kWarpN = 4;  // blocks of 16 rows and of 8 columns: 2 x 4 warps make a tile
constexpr int kBand = 16;              // tiles of rows that share the columns in the nearest cache

// Elements of the reduced side at a time, and copies under way.
template <typename T>
constexpr int kDepth = sizeof(T) == 2 ? 32 : 16;
template <typename T>
constexpr int kStages = sizeof(T) == 2 ? 4 : 2;
// Rows of a tile in shared memory are an odd number of 16 bytes, so that eight of them hit different banks.
template <typename T>
constexpr int kPad = 16 / sizeof(T);

template <typename T, bool kByK>
struct OperandTile {
  static constexpr int kRows = kByK ? kTile : kDepth<T>, kColumns = kByK ? kDepth<T> : kTile;
  static constexpr int kPitch = kColumns + kPad<T>;
  static constexpr int kElements = kRows * kPitch;

  static __device__ __forceinline__ void Copy(T* to, const MatrixView& from, int64_t side, int64_t l,
                                              int64_t sides, int64_t k) {
    if constexpr (kByK) {
      CopyTile<T, kRows, kColumns, kPitch, kThreads>(to, from, side, l, sides, k);
    } else {
      CopyTile<T, kRows, kColumns, kPitch, kThreads>(to, from, l, side, k, sides);
    }
  }
  // Where the part of a warp begins.
  static __device__ __forceinline__ const T* At(const T* tile, int side) {
    return tile + (kByK ? side * kPitch : side);
  }
};

struct Batches {
  int count;
  ContractionLoop loop[3];
};

struct ProductArgs {
  ContractionKind kind;
  int64_t m, n, k;
  MatrixView a, b;
  void* c;
  int64_t c_pitch;
  Storage c_storage;
  bool c_pairs;  // pairs of columns lie on their own size
  int a_ragged, b_ragged, c_ragged;
  RaggedRows rows;
  Batches batches;
  int64_t num_batches;
  ContractionLoop outer_k;
  int64_t groups, cells_per_group, b_group, c_group;
};

__device__ __forceinline__ const void* Advance(const void* p, Storage storage, int64_t elements) {
  return static_cast<const char*>(p) + elements * (storage == Storage::kF32 ? 4 : 2);
}

// One tile of some product.
struct TileOfProduct {
  MatrixView a, b;
  void* c;
  int64_t m, n, k, row, column;
};

// Goes through the tiles of all products, in rising order.
class TileWalk {
 public:
  __device__ explicit TileWalk(const ProductArgs& p) : p_(p), n_tiles_((p.n + kTile - 1) / kTile) {}

  // False once `tile` is beyond the last.
  __device__ bool Find(int64_t tile, TileOfProduct& out) {
    out.a = p_.a, out.b = p_.b, out.c = p_.c;
    out.m = p_.m, out.n = p_.n, out.k = p_.k;
    if (p_.kind == ContractionKind::kRowsInM) {
      for (;; ++group_) {
        if (group_ == p_.groups) return false;
        const int64_t begin = FirstRow(group_);
        out.m = FirstRow(group_ + 1) - begin;
        const int64_t tiles = (out.m + kTile - 1) / kTile * n_tiles_;
        if (tile >= before_ + tiles) {
          before_ += tiles;
          continue;
        }
        void* const* const rows = p_.rows.header->data;
        out.a.data = Advance(rows[p_.a_ragged], p_.a.storage, begin * p_.a.pitch);
        out.b.data = Advance(p_.b.data, p_.b.storage, group_ * p_.b_group);
        out.c = const_cast<void*>(Advance(rows[p_.c_ragged], p_.c_storage, begin * p_.c_pitch));
        Place(tile - before_, out);
        return true;
      }
    }
    const int64_t tiles = (out.m + kTile - 1) / kTile * n_tiles_;
    const int64_t product = tile / tiles;
    if (p_.kind == ContractionKind::kRowsInK) {
      if (product >= p_.groups) return false;
      const int64_t begin = FirstRow(product);
      out.k = FirstRow(product + 1) - begin;
      if (out.k > 0) {  // without any row there may be no memory either
        void* const* const rows = p_.rows.header->data;
        out.a.data = Advance(rows[p_.a_ragged], p_.a.storage, begin * p_.a.pitch);
        out.b.data = Advance(rows[p_.b_ragged], p_.b.storage, begin * p_.b.pitch);
      }
      out.c = const_cast<void*>(Advance(p_.c, p_.c_storage, product * p_.c_group));
    } else {
      if (product >= p_.num_batches) return false;
      int64_t left = product, a = 0, b = 0, c = 0;
      for (int i = p_.batches.count - 1; i >= 0; --i) {
        const ContractionLoop& loop = p_.batches.loop[i];
        const int64_t index = left % loop.extent;
        left /= loop.extent;
        a += index * loop.a, b += index * loop.b, c += index * loop.c;
      }
      out.a.data = Advance(p_.a.data, p_.a.storage, a);
      out.b.data = Advance(p_.b.data, p_.b.storage, b);
      out.c = const_cast<void*>(Advance(p_.c, p_.c_storage, c));
    }
    Place(tile % tiles, out);
    return true;
  }

 private:
  __device__ int64_t FirstRow(int64_t group) const {
    const int64_t cell = group * p_.cells_per_group;
    return cell < p_.rows.cells ? p_.rows.starts[cell] : p_.rows.header->rows;
  }
  // Bands of some tiles of rows, in which columns are the slower index.
  __device__ void Place(int64_t tile, TileOfProduct& out) const {
    const int64_t m_tiles = (out.m + kTile - 1) / kTile, band = tile / (kBand * n_tiles_),
                  first = band * kBand, in_band = m_tiles - first < kBand ? m_tiles - first : kBand,
                  rest = tile - first * n_tiles_;
    out.row = (first + rest % in_band) * kTile;
    out.column = rest / in_band * kTile;
  }

  const ProductArgs& p_;
  int64_t n_tiles_;
  int64_t group_ = 0, before_ = 0;  // of rows in m
};

template <typename T, bool kAByK, bool kBByK>
__global__ void __launch_bounds__(kThreads, 2) ProductKernel(ProductArgs p) {
  using TileA = OperandTile<T, kAByK>;
  using TileB = OperandTile<T, kBByK>;
  constexpr int kStage = TileA::kElements + TileB::kElements;
  MOE_DYNAMIC_SHARED(T, stages);
  const int warp = threadIdx.x / 32, warp_row = warp / 4 * (16 * kWarpM),
            warp_column = warp % 4 * (8 * kWarpN);
  TileWalk walk(p);
  TileOfProduct at;
  for (int64_t tile = blockIdx.x; walk.Find(tile, at); tile += gridDim.x) {
    const int64_t per_outer = (at.k + kDepth<T> - 1) / kDepth<T>, steps = per_outer * p.outer_k.extent;
    const auto copy = [&](int64_t step) {
      if (step < steps) {
        MatrixView a = at.a, b = at.b;
        const int64_t outer = step / per_outer, l = step % per_outer * kDepth<T>;
        a.data = Advance(a.data, a.storage, outer * p.outer_k.a);
        b.data = Advance(b.data, b.storage, outer * p.outer_k.b);
        T* stage = stages + step % kStages<T> * kStage;
        TileA::Copy(stage, a, at.row, l, at.m, at.k);
        TileB::Copy(stage + TileA::kElements, b, at.column, l, at.n, at.k);
      }
      CommitCopies();
    };
    WarpSums<kWarpM, kWarpN> sums;
    sums.Clear();
    for (int s = 0; s < kStages<T> - 1; ++s) copy(s);
    for (int64_t step = 0; step < steps; ++step) {
      WaitForCopies<kStages<T> - 2>();
      __syncthreads();
      copy(step + kStages<T> - 1);
      const T* stage = stages + step % kStages<T> * kStage;
      AddProduct<T, kAByK, kBByK>(sums, TileA::At(stage, warp_row), TileA::kPitch,
                                  TileB::At(stage + TileA::kElements, warp_column), TileB::kPitch, kDepth<T>);
    }
    WaitForCopies<0>();
    __syncthreads();  // the next tile copies over what slower warps read

    const int64_t row0 = at.row + warp_row, column0 = at.column + warp_column;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kWarpM; ++i) {
#pragma unroll
      for (int j = 0; j < kWarpN; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int64_t row = row0 + i * 16 + h * 8 + lane / 4, column = column0 + j * 8 + lane % 4 * 2;
          if (row >= at.m || column >= at.n) continue;
          const float x = sums.x[i][j][2 * h], y = sums.x[i][j][2 * h + 1];
          const int64_t to = row * p.c_pitch + column;
          const Reals c = {at.c, p.c_storage};
          if (column + 1 < at.n) {
            StorePair(c, to, x, y, p.c_pairs);
          } else {
            StoreOne(c, to, x);
          }
        }
      }
    }
  }
}

int BytesOf(Storage s) { return s == Storage::kF32 ? 4 : 2; }

// Whether all rows of an operand begin at multiples of 16 bytes.
bool Vectors(const MatrixOperand& x, Storage tile, std::initializer_list<int64_t> strides) {
  if (x.storage != tile || !x.aligned) return false;
  const int64_t per = 16 / BytesOf(tile);
  return std::all_of(strides.begin(), strides.end(), [&](int64_t s) { return s % per == 0; });
}

int64_t TilesOf(int64_t extent) { return (extent + kTile - 1) / kTile; }

template <typename T, bool kAByK, bool kBByK>
absl::Status LaunchAs(ProductArgs& args, const MatrixProduct& product, cudaStream_t stream) {
  constexpr int64_t kShared =
      kStages<T> * (OperandTile<T, kAByK>::kElements + OperandTile<T, kBByK>::kElements) * sizeof(T);
  int64_t tiles = 0;
  switch (args.kind) {
    case ContractionKind::kRowsInM:
      tiles = (TilesOf(product.most_rows) + args.groups) * TilesOf(args.n);
      break;
    case ContractionKind::kRowsInK:
      tiles = args.groups * TilesOf(args.m) * TilesOf(args.n);
      break;
    default:
      tiles = args.num_batches * TilesOf(args.m) * TilesOf(args.n);
  }
  if (tiles == 0) return absl::OkStatus();
  int device = 0, processors = 0;
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const int64_t blocks = std::min<int64_t>(tiles, 2 * std::max(processors, 1));
  return MOE_LAUNCH((ProductKernel<T, kAByK, kBByK>), dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                    kShared, stream, args);
}

template <typename T>
absl::Status LaunchIn(ProductArgs& args, const MatrixProduct& product, cudaStream_t stream) {
  const Contraction& s = product.shape;
  const bool a_by_k = s.a_k == 1, b_by_k = s.b_k == 1;
  const Storage tile = kStorageOf<T>;
  const auto view = [&](const MatrixOperand& x, int64_t pitch, std::initializer_list<int64_t> strides) {
    return MatrixView{x.data, pitch, x.storage, Vectors(x, tile, strides)};
  };
  const auto stride = [&](int i, int64_t ContractionLoop::*of) {
    return i < static_cast<int>(s.batches.size()) ? s.batches[i].*of : 0;
  };
  const int64_t a_pitch = a_by_k ? s.a_m : s.a_k, b_pitch = b_by_k ? s.b_n : s.b_k;
  args.a = view(product.a, a_pitch,
                {a_pitch, s.outer_k.a, stride(0, &ContractionLoop::a), stride(1, &ContractionLoop::a),
                 stride(2, &ContractionLoop::a)});
  args.b = view(product.b, b_pitch,
                {b_pitch, s.outer_k.b, s.b_group, stride(0, &ContractionLoop::b),
                 stride(1, &ContractionLoop::b), stride(2, &ContractionLoop::b)});
  if (a_by_k) {
    return b_by_k ? LaunchAs<T, true, true>(args, product, stream)
                  : LaunchAs<T, true, false>(args, product, stream);
  }
  return b_by_k ? LaunchAs<T, false, true>(args, product, stream)
                : LaunchAs<T, false, false>(args, product, stream);
}

}  // namespace

absl::Status LaunchProduct(const MatrixProduct& product, cudaStream_t stream) {
  const Contraction& s = product.shape;
  ProductArgs args = {};
  args.kind = s.kind;
  args.m = s.m, args.n = s.n, args.k = s.k;
  args.c = product.c.data;
  args.c_pitch = s.c_m;
  args.c_storage = product.c.storage;
  args.a_ragged = product.a.ragged, args.b_ragged = product.b.ragged, args.c_ragged = product.c.ragged;
  args.rows = product.rows;
  args.num_batches = 1;
  bool pairs = product.c.aligned && s.c_m % 2 == 0 && s.c_group % 2 == 0;
  for (const ContractionLoop& loop : s.batches) {
    args.batches.loop[args.batches.count++] = loop;
    args.num_batches *= loop.extent;
    pairs = pairs && loop.c % 2 == 0;
  }
  args.c_pairs = pairs;
  args.outer_k = s.outer_k;
  args.groups = s.groups, args.cells_per_group = s.cells_per_group;
  args.b_group = s.b_group, args.c_group = s.c_group;
  if (product.a.storage == product.b.storage && product.a.storage == Storage::kBF16)
    return LaunchIn<__nv_bfloat16>(args, product, stream);
  if (product.a.storage == product.b.storage && product.a.storage == Storage::kF16)
    return LaunchIn<__half>(args, product, stream);
  return LaunchIn<float>(args, product, stream);
}

}  // namespace moe::kernels
