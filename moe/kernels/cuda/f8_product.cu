#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/device/cuda/cuda.h"
#include "moe/ir/wire_format.h"
#include "moe/kernels/cuda/f8_product.h"
#include "moe/kernels/cuda/tile_copy.h"
#include "moe/kernels/cuda/vec.h"
#include "moe/kernels/cuda/warp_product.h"
#include "moe/kernels/rounded_operands.h"

namespace moe::kernels {
namespace {

constexpr int kRun = static_cast<int>(kWireBlock);  // values per scale
constexpr int kThreads = 256, kTile = 128, kStages = 3;
constexpr int kWarpM = 4, kWarpN = 4;  // blocks of 16 rows and of 8 columns: 2 x 4 warps make a tile
constexpr int kPitch = kRun + 16;      // bytes: an odd number of 16, so that eight rows hit different banks
constexpr int kStageBytes = 2 * kTile * kPitch;

enum class Rows : int32_t { kDense, kInM, kInK };  // which side is ragged

// An operand as it lies in memory, and its codes and scales in the workspace.
struct F8Operand {
  Reals data;
  int ragged = -1;  // >= 0: the rows are at header->data[ragged]
  bool by_k = false;
  int64_t side = 0;       // rows of a group; of ragged ones: 0
  int64_t code_rows = 0;  // of one run, in the workspace
  uint8_t* codes = nullptr;
  float* scales = nullptr;
};

struct F8Args {
  Rows rows_in = Rows::kDense;
  int64_t groups = 1, cells_per_group = 1, m = 0, n = 0, k = 0;  // the ragged one is 0
  F8Operand a, b;
  Reals c;
  int c_ragged = -1;
  bool c_pairs = false;  // pairs of columns lie on their own size
  RaggedRows rows;
  // The part that goes through the workspace now: rows of m, or runs of k.
  int64_t begin = 0, end = 0;
  bool accumulate = false;
};

__device__ __forceinline__ int64_t FirstRow(const F8Args& p, int64_t group) {
  const int64_t cell = group * p.cells_per_group;
  return cell < p.rows.cells ? p.rows.starts[cell] : p.rows.header->rows;
}
__host__ __device__ __forceinline__ int64_t RunsOf(int64_t k) { return (k + kRun - 1) / kRun; }

// Goes through the runs of all groups of ragged k, in rising order.
class RunWalk {
 public:
  __device__ explicit RunWalk(const F8Args& p) : p_(p) {
    if (p.rows_in == Rows::kInK) Enter(0);
  }

  // Where run `run` of all begins, among the rows, and how many it has. False beyond the last.
  __device__ bool Find(int64_t run, int64_t* first, int* count) {
    while (group_ < p_.groups && run >= before_ + RunsOf(rows_)) {
      before_ += RunsOf(rows_);
      Enter(group_ + 1);
    }
    if (group_ == p_.groups) return false;
    const int64_t at = (run - before_) * kRun, left = rows_ - at;
    *first = row_ + at;
    *count = static_cast<int>(left < kRun ? left : kRun);
    return true;
  }
  // The runs of a group: those before it, and its own.
  __device__ void Group(int64_t group, int64_t* before, int64_t* runs) {
    while (group_ < group) {
      before_ += RunsOf(rows_);
      Enter(group_ + 1);
    }
    *before = before_;
    *runs = RunsOf(rows_);
  }

 private:
  __device__ void Enter(int64_t group) {
    group_ = group;
    if (group == p_.groups) return;
    row_ = FirstRow(p_, group);
    rows_ = FirstRow(p_, group + 1) - row_;
  }
  const F8Args& p_;
  int64_t group_ = 0, before_ = 0, row_ = 0, rows_ = 0;
};

// Two codes, the first in the low byte; |x| and |y| at most 448. To nearest, ties to even.
__device__ __forceinline__ uint32_t TwoCodes(float x, float y) {
#if defined(MOE_EMULATED)
  const auto code = [](float v) -> uint32_t {
    const float a = std::fabs(v);
    const int exponent = a < 0x1p-6f ? -6 : std::ilogb(a);
    // In steps of the last place; 16 of them carry into the exponent.
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(a, 3 - exponent)));
    return (std::signbit(v) ? 128u : 0u) | static_cast<uint32_t>((exponent + 6) * 8 + steps);
  };
  return code(x) | code(y) << 8;
#elif __CUDA_ARCH__ >= 890
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;\n" : "=h"(codes) : "f"(y), "f"(x));
  return codes;
#else
  __trap();
#endif
}

// Runs of 128 of an operand as codes and scales, in the arithmetic of the wire (moe/device/wire_codec.cc). A
// block has a run of 32 rows at a time, brought together in shared memory: columns may be what follows in
// memory.
__global__ void __launch_bounds__(kThreads) EncodeKernel(F8Args p, F8Operand x) {
  constexpr int kRows = 32, kRowPitch = kRun + 4, kWarps = kThreads / 32, kPerLane = kRun / 32;
  __shared__ float4 chunks[kRows * kRowPitch / 4];
  float* const tile = reinterpret_cast<float*>(chunks);
  const bool ragged_rows = p.rows_in == Rows::kInM && x.ragged >= 0, ragged_k = p.rows_in == Rows::kInK;
  int64_t rows = ragged_k ? x.side : p.groups * x.side, runs = RunsOf(p.k), first_row = 0;
  if (ragged_rows) {
    const int64_t all = p.rows.header->rows;
    first_row = p.begin;
    rows = (all < p.end ? all : p.end) - p.begin;
  } else if (ragged_k) {
    runs = p.end - p.begin;  // fewer may be there
  }
  if (rows <= 0) return;
  Reals data = x.data;
  if (x.ragged >= 0) data.data = p.rows.header->data[x.ragged];
  const int64_t row_tiles = (rows + kRows - 1) / kRows;
  RunWalk walk(p);
  for (int64_t item = blockIdx.x; item < runs * row_tiles; item += gridDim.x) {
    const int64_t run = item / row_tiles, row0 = item % row_tiles * kRows;
    int64_t at_k = run * kRun;
    int count = static_cast<int>(p.k - at_k < kRun ? p.k - at_k : kRun);
    if (ragged_k && !walk.Find(p.begin + run, &at_k, &count)) break;
    for (int i = threadIdx.x; i < kRows * kRun; i += kThreads) {
      const int r = x.by_k ? i / kRun : i % kRows, l = x.by_k ? i % kRun : i / kRows;
      const int64_t row = row0 + r;
      float value = 0;
      if (row < rows && l < count) {
        const int64_t group = ragged_k ? 0 : row / (x.side > 0 ? x.side : rows);
        const int64_t at = x.by_k ? (first_row + row) * p.k + at_k + l
                                  : (group * p.k + at_k + l) * x.side + (row - group * x.side);
        value = LoadOne(data, at);
      }
      tile[r * kRowPitch + l] = value;
    }
    __syncthreads();
    const int lane = threadIdx.x % 32;
    for (int r = threadIdx.x / 32; r < kRows && row0 + r < rows; r += kWarps) {
      const float4 v = chunks[(r * kRowPitch + lane * kPerLane) / 4];
      const float values[kPerLane] = {v.x, v.y, v.z, v.w};
      uint32_t largest = 0;  // of the bits of magnitudes, which order like them; NaN above all
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const uint32_t magnitude = __float_as_uint(values[j]) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
      }
#pragma unroll
      for (int delta = 16; delta > 0; delta /= 2) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, largest, delta);
        largest = other > largest ? other : largest;
      }
      const bool finite = largest < 0x7f800000;
      const float scale = fmaxf(__fdiv_rn(__uint_as_float(largest), 448.0f), 0x1p-124f);
      const float inverse = __fdiv_rn(1.0f, scale);
      float y[kPerLane];
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        y[j] = finite ? fminf(448.0f, fmaxf(-448.0f, __fmul_rn(values[j], inverse))) : 0.0f;
      }
      const int64_t to = run * x.code_rows + row0 + r;
      reinterpret_cast<uint32_t*>(x.codes + to * kRun)[lane] = TwoCodes(y[0], y[1]) | TwoCodes(y[2], y[3])
                                                                                          << 16;
      if (lane == 0) x.scales[to] = finite ? scale : __uint_as_float(0x7fc00000);
    }
    __syncthreads();
  }
}

#ifdef MOE_EMULATED
// What the lanes of a warp show one another, see warp_product.h.
struct Shown {
  float a[16][32], b[8][32];  // b by columns
};
Shown& NextOfWarp() {
  static thread_local Shown shown[kThreads / 32][2];
  static thread_local bool second[kThreads];
  bool& mine = second[threadIdx.x];
  mine = !mine;
  return shown[threadIdx.x / 32][mine];
}
float Decoded(uint32_t word, int byte) {
  const int code = word >> (8 * byte) & 255, exponent = code >> 3 & 15, mantissa = code & 7;
  const float x = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return code & 128 ? -x : x;
}
#endif

// d += a b on 16 x 32 and 32 x 8 codes (PTX ISA 9.7.14.5.10, m16n8k32).
__device__ __forceinline__ void MmaF8(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(MOE_EMULATED)
  Shown& shown = NextOfWarp();
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int byte = 0; byte < 4; ++byte) {
    for (int i = 0; i < 4; ++i) shown.a[g + i % 2 * 8][4 * t + i / 2 * 16 + byte] = Decoded(a[i], byte);
    shown.b[g][4 * t + byte] = Decoded(b0, byte);
    shown.b[g][4 * t + 16 + byte] = Decoded(b1, byte);
  }
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const float *x = shown.a[g + i / 2 * 8], *y = shown.b[2 * t + i % 2];
    float sum = 0;
    for (int k = 0; k < 32; ++k) sum += x[k] * y[k];
    d[i] += sum;
  }
#elif __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

// One tile of some group's product: rows of codes and runs of the operands, both in the workspace.
struct F8Tile {
  int64_t a_row, b_row, run, runs;
  int64_t m, n, row, column;  // extents, and where the tile begins
  int64_t c_row;              // of the result, where the group begins
};

// Goes through the tiles of all groups, in rising order.
class F8TileWalk {
 public:
  __device__ explicit F8TileWalk(const F8Args& p) : p_(p), runs_(p) {}

  // False once `tile` is beyond the last. Tiles of a later part of k may have no run.
  __device__ bool Find(int64_t tile, F8Tile& out) {
    const int64_t n_tiles = (p_.n + kTile - 1) / kTile;
    for (;; ++group_) {
      if (group_ >= p_.groups) return false;
      int64_t begin = 0;
      out.m = p_.m;
      if (p_.rows_in == Rows::kInM) {
        begin = FirstRow(p_, group_);
        int64_t end = FirstRow(p_, group_ + 1);
        if (begin < p_.begin) begin = p_.begin;
        if (end > p_.end) end = p_.end;
        out.m = end > begin ? end - begin : 0;
      }
      const int64_t tiles = (out.m + kTile - 1) / kTile * n_tiles;
      if (tile >= before_ + tiles) {
        before_ += tiles;
        continue;
      }
      out.n = p_.n;
      out.row = (tile - before_) / n_tiles * kTile;
      out.column = (tile - before_) % n_tiles * kTile;
      out.run = 0;
      out.runs = RunsOf(p_.k);
      out.a_row = p_.rows_in == Rows::kInM ? begin - p_.begin : group_ * p_.m;
      out.b_row = group_ * p_.n;
      out.c_row = p_.rows_in == Rows::kInM ? begin : group_ * p_.m;
      if (p_.rows_in == Rows::kInK) {
        int64_t first, count;
        runs_.Group(group_, &first, &count);
        const int64_t from = first < p_.begin ? p_.begin : first,
                      to = first + count > p_.end ? p_.end : first + count;
        out.run = from - p_.begin;
        out.runs = to > from ? to - from : 0;
        out.a_row = out.b_row = 0;
      }
      return true;
    }
  }

 private:
  const F8Args& p_;
  RunWalk runs_;
  int64_t group_ = 0, before_ = 0;
};

__global__ void __launch_bounds__(kThreads, 1) F8ProductKernel(F8Args p) {
  using warp_product_internal::LoadMatrices;
  MOE_DYNAMIC_SHARED(uint8_t, stages);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, matrix = lane / 8, r = lane % 8;
  const int warp_row = warp / 4 * (16 * kWarpM), warp_column = warp % 4 * (8 * kWarpN);
  Reals c = p.c;
  if (p.c_ragged >= 0) c.data = p.rows.header->data[p.c_ragged];
  F8TileWalk walk(p);
  F8Tile at;
  for (int64_t tile = blockIdx.x; walk.Find(tile, at); tile += gridDim.x) {
    if (at.runs == 0 && p.accumulate) continue;
    const auto copy = [&](int64_t step) {
      if (step < at.runs) {
        uint8_t* const stage = stages + step % kStages * kStageBytes;
        for (int i = threadIdx.x; i < 2 * kTile * (kRun / 16); i += kThreads) {
          const int row = i / (kRun / 16), part = i % (kRun / 16) * 16;
          const bool of_a = row < kTile;
          const F8Operand& x = of_a ? p.a : p.b;
          const int64_t in_group = of_a ? at.row + row : at.column + row - kTile;
          const bool inside = in_group < (of_a ? at.m : at.n);
          const int64_t from = (at.run + step) * x.code_rows + (of_a ? at.a_row : at.b_row) + in_group;
          Copy16(stage + row * kPitch + part, inside ? x.codes + from * kRun + part : x.codes,
                 inside ? 16 : 0);
        }
      }
      CommitCopies();
    };
    const int64_t row0 = at.row + warp_row, column0 = at.column + warp_column;
    WarpSums<kWarpM, kWarpN> sums;
    sums.Clear();
    for (int s = 0; s < kStages - 1; ++s) copy(s);
    for (int64_t step = 0; step < at.runs; ++step) {
      float row_scale[kWarpM][2], column_scale[kWarpN][2];
#pragma unroll
      for (int i = 0; i < kWarpM; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int64_t row = row0 + i * 16 + h * 8 + lane / 4;
          row_scale[i][h] = row < at.m ? p.a.scales[(at.run + step) * p.a.code_rows + at.a_row + row] : 0.0f;
        }
      }
#pragma unroll
      for (int j = 0; j < kWarpN; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int64_t column = column0 + j * 8 + lane % 4 * 2 + h;
          column_scale[j][h] =
              column < at.n ? p.b.scales[(at.run + step) * p.b.code_rows + at.b_row + column] : 0.0f;
        }
      }
      WaitForCopies<kStages - 2>();
      __syncthreads();
      copy(step + kStages - 1);
      const uint8_t* const a = stages + step % kStages * kStageBytes + warp_row * kPitch;
      const uint8_t* const b = stages + step % kStages * kStageBytes + (kTile + warp_column) * kPitch;
      uint32_t of_b[kRun / 32][kWarpN][2];
#pragma unroll
      for (int l = 0; l < kRun / 32; ++l) {
#pragma unroll
        for (int j = 0; j < kWarpN; j += 2) {
          uint32_t two[4];
          LoadMatrices<false>(two, b + (j * 8 + matrix / 2 * 8 + r) * kPitch + l * 32 + matrix % 2 * 16);
          of_b[l][j][0] = two[0], of_b[l][j][1] = two[1];
          of_b[l][j + 1][0] = two[2], of_b[l][j + 1][1] = two[3];
        }
      }
#pragma unroll
      for (int i = 0; i < kWarpM; ++i) {
        uint32_t of_a[kRun / 32][4];
#pragma unroll
        for (int l = 0; l < kRun / 32; ++l) {
          LoadMatrices<false>(of_a[l], a + (i * 16 + matrix % 2 * 8 + r) * kPitch + l * 32 + matrix / 2 * 16);
        }
#pragma unroll
        for (int j = 0; j < kWarpN; ++j) {
          float run[4] = {0, 0, 0, 0};
#pragma unroll
          for (int l = 0; l < kRun / 32; ++l) MmaF8(run, of_a[l], of_b[l][j][0], of_b[l][j][1]);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            sums.x[i][j][e] += run[e] * (row_scale[i][e / 2] * column_scale[j][e % 2]);
          }
        }
      }
    }
    WaitForCopies<0>();
    __syncthreads();  // the next tile copies over what slower warps read

#pragma unroll
    for (int i = 0; i < kWarpM; ++i) {
#pragma unroll
      for (int j = 0; j < kWarpN; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int64_t row = row0 + i * 16 + h * 8 + lane / 4, column = column0 + j * 8 + lane % 4 * 2;
          if (row >= at.m || column >= at.n) continue;
          const bool two = column + 1 < at.n;
          const int64_t to = (at.c_row + row) * p.n + column;
          float x = sums.x[i][j][2 * h], y = sums.x[i][j][2 * h + 1];
          if (p.accumulate) {
            x += LoadOne(c, to);
            if (two) y += LoadOne(c, to + 1);
          }
          if (two) {
            StorePair(c, to, x, y, p.c_pairs);
          } else {
            StoreOne(c, to, x);
          }
        }
      }
    }
  }
}

// What follows from shapes alone.
struct Shape {
  F8Args args;
  bool swapped = false;  // a is operand 1, so that columns follow one another in the result
  int64_t part = 0;      // rows of m, or runs of k, that the workspace has room for
};

int64_t CodeBytes(int64_t rows) {
  return WorkspacePart(rows * kRun) + WorkspacePart(rows * static_cast<int64_t>(sizeof(float)));
}

absl::StatusOr<Shape> ShapeOf(const ShardingRule& rule, absl::Span<const int64_t> extent,
                              absl::Span<const Tensor> in, const Tensor& out) {
  ASSIGN_OR_RETURN(const GroupedProduct p, GroupedProductOf(rule));
  Shape s;
  s.swapped = !p.c_by_n;
  const GroupedProduct::Side &m = s.swapped ? p.n : p.m, &n = s.swapped ? p.m : p.n;
  const Tensor &a = in[s.swapped ? 1 : 0], &b = in[s.swapped ? 0 : 1];
  F8Args& args = s.args;
  const auto extent_of = [&](const GroupedProduct::Side& side) {
    int64_t e = 1;
    for (const FactorId f : side) e *= extent[f];
    return e;
  };
  args.groups = extent_of(p.g);
  args.m = extent_of(m), args.n = extent_of(n), args.k = extent_of(p.k);
  args.a.by_k = s.swapped ? p.b_by_k : p.a_by_k;
  args.b.by_k = s.swapped ? p.a_by_k : p.b_by_k;
  args.a.side = args.m, args.b.side = args.n;
  const auto ends_with_rows = [&](const GroupedProduct::Side& side, const Tensor& t) {
    const int operand = &t == in.data() ? 0 : 1;
    return !side.empty() && side.back() == rule.operands[operand][t.ragged][0];
  };
  if (a.is_ragged() && !b.is_ragged() && out.is_ragged() && args.a.by_k && ends_with_rows(m, a)) {
    args.rows_in = Rows::kInM;
    args.m = args.a.side = 0;
    // Rows are always enough for a tile: many small parts would be many launches.
    s.part = std::max<int64_t>(a.capacity_rows, kTile);
    args.a.code_rows = s.part;
    args.b.code_rows = args.groups * args.n;
  } else if (a.is_ragged() && b.is_ragged() && !out.is_ragged() && !args.a.by_k && !args.b.by_k &&
             ends_with_rows(p.k, a)) {
    args.rows_in = Rows::kInK;
    args.k = 0;
    s.part = RunsOf(std::min(a.capacity_rows, b.capacity_rows)) + args.groups;
    args.a.code_rows = args.m;
    args.b.code_rows = args.n;
  } else if (!a.is_ragged() && !b.is_ragged() && !out.is_ragged()) {
    args.a.code_rows = args.groups * args.m;
    args.b.code_rows = args.groups * args.n;
  } else {
    return absl::UnimplementedError(
        absl::StrCat("multiply = \"f8e4m3\" on CUDA takes ragged rows as experts have them, not \"",
                     rule.ToString(), "\""));
  }
  if (a.is_ragged()) args.cells_per_group = args.groups > 0 ? a.cells / args.groups : 0;
  return s;
}

int64_t RunsInWorkspace(const Shape& s) { return s.args.rows_in == Rows::kInK ? s.part : RunsOf(s.args.k); }

absl::Status CheckDevice() {
  int device = 0, major = 0, minor = 0;
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  if (major * 10 + minor >= 89) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("products of e4m3 want compute capability 8.9; CUDA device ",
                                               device, " has ", major, ".", minor));
}

}  // namespace

int64_t F8Workspace(const ShardingRule& rule, absl::Span<const int64_t> extent, absl::Span<const Tensor> in,
                    absl::Span<const Tensor> out) {
  const absl::StatusOr<Shape> s = ShapeOf(rule, extent, in, out[0]);
  if (!s.ok()) return 0;
  return CodeBytes(RunsInWorkspace(*s) * s->args.a.code_rows) +
         CodeBytes(RunsInWorkspace(*s) * s->args.b.code_rows);
}

absl::Status F8Einsum(const KernelContext& c, const RaggedRows& rows, int64_t most_rows, void* memory) {
  RETURN_IF_ERROR(CheckDevice());
  ASSIGN_OR_RETURN(Shape s, ShapeOf(*c.rule, c.extent, c.in, c.out[0]));
  F8Args& args = s.args;
  args.rows = rows;
  const cudaStream_t stream = CudaStreamOf(c);
  char* next = static_cast<char*>(memory);
  const auto take = [&](int64_t bytes) {
    void* const p = next;
    next += WorkspacePart(bytes);
    return p;
  };
  const int first = s.swapped ? 1 : 0;
  for (const auto& [x, operand] : {std::pair(&args.a, first), std::pair(&args.b, 1 - first)}) {
    ASSIGN_OR_RETURN(x->data, RealsOf(c.in[operand]));
    x->ragged = RaggedOperandIndex(c, operand);
    const int64_t code_rows = RunsInWorkspace(s) * x->code_rows;
    x->codes = static_cast<uint8_t*>(take(code_rows * kRun));
    x->scales = static_cast<float*>(take(code_rows * static_cast<int64_t>(sizeof(float))));
  }
  ASSIGN_OR_RETURN(args.c, RealsOf(c.out[0]));
  args.c_ragged = RaggedResultIndex(c, 0);
  const Tensor& y = c.out[0];
  args.c_pairs = args.n % 2 == 0 &&
                 (y.is_ragged() ? IsAligned(y.arena_rows) && IsAligned(y.spill_rows) : IsAligned(y.data));
  int device = 0, processors = 0;
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const auto blocks = [&](int64_t items, int per_processor) {
    const int64_t most = int64_t{per_processor} * std::max(processors, 1);
    return dim3(static_cast<unsigned>(std::clamp<int64_t>(items, 1, most)));
  };
  const auto encode = [&](const F8Operand& x) -> absl::Status {
    const int64_t items = RunsInWorkspace(s) * CeilDiv(x.code_rows, 32);
    if (items == 0) return absl::OkStatus();
    return MOE_LAUNCH(EncodeKernel, blocks(items, 8), dim3(kThreads), 0, stream, args, x);
  };
  const int64_t all = args.rows_in == Rows::kInM   ? most_rows
                      : args.rows_in == Rows::kInK ? RunsOf(most_rows) + args.groups
                                                   : 1;
  for (int64_t begin = 0; begin < all; begin += std::max<int64_t>(s.part, 1)) {
    args.begin = begin;
    args.end = begin + s.part;
    args.accumulate = args.rows_in == Rows::kInK && begin > 0;
    RETURN_IF_ERROR(encode(args.a));
    if (args.rows_in != Rows::kInM || begin == 0) RETURN_IF_ERROR(encode(args.b));
    const int64_t tiles = (args.rows_in == Rows::kInM ? CeilDiv(s.part, kTile) + args.groups
                                                      : args.groups * CeilDiv(args.m, kTile)) *
                          CeilDiv(args.n, kTile);
    if (tiles == 0) return absl::OkStatus();
    RETURN_IF_ERROR(
        MOE_LAUNCH(F8ProductKernel, blocks(tiles, 1), dim3(kThreads), kStages * kStageBytes, stream, args));
  }
  return absl::OkStatus();
}

}  // namespace moe::kernels
