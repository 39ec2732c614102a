// Row-wise ops of a transformer: norms, rotary positions, softmax and its kin, SwiGLU, merged attention.

#include <algorithm>
#include <cmath>

#include "moe/kernels/cuda/families.h"
#include "moe/kernels/cuda/map.h"
#include "moe/kernels/larger.h"

namespace moe::kernels {
namespace {

struct SwigluOf {
  __device__ void operator()(const float (&x)[2], float (&y)[1]) const { y[0] = x[0] * Sigmoid(x[0]) * x[1]; }
};
struct SwigluGradOf {
  __device__ void operator()(const float (&x)[3], float (&y)[2]) const {
    const float s = Sigmoid(x[0]);
    y[0] = x[2] * x[1] * s * (1 + x[0] * (1 - s));
    y[1] = x[2] * x[0] * s;
  }
};

absl::Status Swiglu(KernelContext& c) { return Map<2, 1>(c, SwigluOf()); }
absl::Status SwigluGrad(KernelContext& c) { return Map<3, 2>(c, SwigluGradOf()); }

struct RowShape {
  int64_t rows, width;
  bool aligned;
};

// y = x r weight with r = 1 / sqrt(mean(x^2) + eps); with `add`, of x + add as it is stored in `sum`.
__global__ void RmsNormKernel(Reals x, Reals add, Reals weight, float eps, Reals sum, Reals y, RowShape s) {
  const bool adds = add.data != nullptr;
  const Reals normed = {adds ? sum.data : x.data, adds ? sum.storage : x.storage};
  for (int64_t row = FirstRow(); row < s.rows; row += RowStep()) {
    float squares = 0;
    for (int64_t at = FirstChunk(); at < s.width; at += ChunkStep()) {
      const int n = ChunkSize(at, s.width);
      Chunk v = Load(x, row * s.width + at, n, s.aligned);
      if (adds) {
        const Chunk a = Load(add, row * s.width + at, n, s.aligned);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) v.x[i] = Rounded(sum.storage, v.x[i] + a.x[i]);
        Store(sum, row * s.width + at, n, s.aligned, v);
      }
#pragma unroll
      for (int i = 0; i < kChunk; ++i) squares += v.x[i] * v.x[i];
    }
    const float r = 1 / sqrtf(RowSum(squares) / s.width + eps);
    for (int64_t at = FirstChunk(); at < s.width; at += ChunkStep()) {  // its own chunks, near still
      const int n = ChunkSize(at, s.width);
      Chunk v = Load(normed, row * s.width + at, n, s.aligned);
      const Chunk w = Load(weight, at, n, s.aligned);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) v.x[i] *= r * w.x[i];
      Store(y, row * s.width + at, n, s.aligned, v);
    }
  }
}

RowShape TokenRows(const KernelContext& c) {
  RowShape s = {c.Extent("b") * c.Extent("s"), c.Extent("h"), true};
  for (const Tensor& t : c.in) s.aligned = s.aligned && HasAlignedRows(t, s.width);
  for (const Tensor& t : c.out) s.aligned = s.aligned && HasAlignedRows(t, s.width);
  return s;
}

absl::Status RmsNorm(KernelContext& c) {
  const RowShape s = TokenRows(c);
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals weight, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals y, RealsOf(c.out[0]));
  const LaunchShape l = ChunkRowLaunch(s.rows, s.width);
  return MOE_LAUNCH(RmsNormKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), x, Reals(), weight,
                    static_cast<float>(c.node->Float("eps")), Reals(), y, s);
}

absl::Status AddRmsNorm(KernelContext& c) {
  const RowShape s = TokenRows(c);
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals add, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals weight, RealsOf(c.in[2]));
  ASSIGN_OR_RETURN(const Reals sum, RealsOf(c.out[0]));
  ASSIGN_OR_RETURN(const Reals y, RealsOf(c.out[1]));
  const LaunchShape l = ChunkRowLaunch(s.rows, s.width);
  return MOE_LAUNCH(RmsNormKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), x, add, weight,
                    static_cast<float>(c.node->Float("eps")), sum, y, s);
}

__global__ void RmsNormDxKernel(Reals x, Reals weight, Reals dy, float eps, Reals dx, RowShape s) {
  for (int64_t row = FirstRow(); row < s.rows; row += RowStep()) {
    float squares = 0, dot = 0;
    for (int64_t at = FirstChunk(); at < s.width; at += ChunkStep()) {
      const int n = ChunkSize(at, s.width);
      const Chunk v = Load(x, row * s.width + at, n, s.aligned),
                  d = Load(dy, row * s.width + at, n, s.aligned), w = Load(weight, at, n, s.aligned);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        squares += v.x[i] * v.x[i];
        dot += d.x[i] * w.x[i] * v.x[i];
      }
    }
    const float r = 1 / sqrtf(RowSum(squares) / s.width + eps);
    const float by_x = r * r * r * (RowSum(dot) / s.width);
    for (int64_t at = FirstChunk(); at < s.width; at += ChunkStep()) {
      const int n = ChunkSize(at, s.width);
      Chunk v = Load(x, row * s.width + at, n, s.aligned);
      const Chunk d = Load(dy, row * s.width + at, n, s.aligned), w = Load(weight, at, n, s.aligned);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) v.x[i] = r * d.x[i] * w.x[i] - v.x[i] * by_x;
      Store(dx, row * s.width + at, n, s.aligned, v);
    }
  }
}

absl::Status RmsNormDx(KernelContext& c) {
  const RowShape s = TokenRows(c);
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals weight, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals dy, RealsOf(c.in[2]));
  ASSIGN_OR_RETURN(const Reals dx, RealsOf(c.out[0]));
  const LaunchShape l = ChunkRowLaunch(s.rows, s.width);
  return MOE_LAUNCH(RmsNormDxKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), x, weight, dy,
                    static_cast<float>(c.node->Float("eps")), dx, s);
}

// A block adds up x r dy over a run of rows, in shared memory or, if rows are too wide, where its part of the
// result lies. Every thread has columns of its own.
__global__ void RmsNormDwKernel(Reals x, Reals dy, float eps, RowShape s, int64_t run, bool in_shared,
                                float* partial) {
  MOE_DYNAMIC_SHARED(float, shared);
  float* const part = partial + int64_t{blockIdx.x} * s.width;
  float* const sum = in_shared ? shared : part;
  for (int64_t at = FirstChunk(); at < s.width; at += ChunkStep()) {
    for (int i = 0; i < ChunkSize(at, s.width); ++i) sum[at + i] = 0;
  }
  const int64_t end = s.rows - blockIdx.x * run < run ? s.rows : (blockIdx.x + 1) * run;
  for (int64_t row = blockIdx.x * run; row < end; ++row) {
    float squares = 0;
    for (int64_t at = FirstChunk(); at < s.width; at += ChunkStep()) {
      const Chunk v = Load(x, row * s.width + at, ChunkSize(at, s.width), s.aligned);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) squares += v.x[i] * v.x[i];
    }
    const float r = 1 / sqrtf(RowSum(squares) / s.width + eps);
    for (int64_t at = FirstChunk(); at < s.width; at += ChunkStep()) {
      const int n = ChunkSize(at, s.width);
      const Chunk v = Load(x, row * s.width + at, n, s.aligned),
                  d = Load(dy, row * s.width + at, n, s.aligned);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        if (i < n) sum[at + i] += v.x[i] * r * d.x[i];
      }
    }
  }
  if (!in_shared) return;
  for (int64_t at = FirstChunk(); at < s.width; at += ChunkStep()) {
    for (int i = 0; i < ChunkSize(at, s.width); ++i) part[at + i] = sum[at + i];
  }
}

// y[column] = sum of parts: 32 columns a block, its 8 warps take turns at the parts.
__global__ void SumPartsKernel(const float* partial, int64_t parts, int64_t width, Reals y) {
  __shared__ float sums[8][kWarp];
  for (int64_t first = int64_t{blockIdx.x} * kWarp; first < width; first += int64_t{gridDim.x} * kWarp) {
    const int64_t column = first + threadIdx.x;
    float sum = 0;
    if (column < width) {
      for (int64_t p = threadIdx.y; p < parts; p += 8) sum += partial[p * width + column];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < width) {
      sum = 0;
      for (int i = 0; i < 8; ++i) sum += sums[i][threadIdx.x];
      StoreOne(y, column, sum);
    }
    __syncthreads();
  }
}

// Rows that a block of RmsNormDw adds up: as many blocks as make 8 MiB of parts, which keep a device busy and
// are summed quickly.
int64_t RowsPerPart(int64_t rows, int64_t width) {
  const int64_t most = std::clamp<int64_t>((int64_t{2} << 20) / std::max<int64_t>(1, width), 256, 2048);
  return std::max<int64_t>(4, CeilDiv(rows, most));
}
int64_t NumParts(int64_t rows, int64_t width) {
  return std::max<int64_t>(1, CeilDiv(rows, RowsPerPart(rows, width)));
}

int64_t RmsNormDwWorkspace(const Node&, const ShardingRule& rule, absl::Span<const int64_t> extent,
                           absl::Span<const Tensor>, absl::Span<const Tensor>) {
  const int64_t rows = extent[rule.Find("b")] * extent[rule.Find("s")];
  const int64_t width = extent[rule.Find("h")];
  return WorkspacePart(NumParts(rows, width) * width * static_cast<int64_t>(sizeof(float)));
}

absl::Status RmsNormDw(KernelContext& c) {
  RowShape s = {c.Extent("b") * c.Extent("s"), c.Extent("h"), true};
  s.aligned = HasAlignedRows(c.in[0], s.width) && HasAlignedRows(c.in[1], s.width);
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals dy, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals dw, RealsOf(c.out[0]));
  const int64_t parts = NumParts(s.rows, s.width), shared = s.width * static_cast<int64_t>(sizeof(float));
  Workspace w(c);
  float* const partial = w.Take<float>(parts * s.width);
  LaunchShape l = RowLaunch(1, 4 * CeilDiv(s.width, kChunk));  // a chunk a thread: there are few blocks
  l.blocks = parts;
  const bool in_shared = shared <= kDefaultSharedBytes;
  RETURN_IF_ERROR(MOE_LAUNCH(RmsNormDwKernel, GridOf(l), BlockOf(l), in_shared ? shared : 0, CudaStreamOf(c),
                             x, dy, static_cast<float>(c.node->Float("eps")), s, RowsPerPart(s.rows, s.width),
                             in_shared, partial));
  const auto blocks = static_cast<unsigned>(std::clamp<int64_t>(CeilDiv(s.width, kWarp), 1, kMaxBlocks));
  return MOE_LAUNCH(SumPartsKernel, blocks, dim3(kWarp, 8), 0, CudaStreamOf(c), partial, parts, s.width, dw);
}

// cosine and sine of position / theta^(2 j / d), j < half, for each position: [s, half] of each. Angles are
// computed in double, as f32 has no digit of an angle of 1e5 left.
__global__ void RopeTableKernel(const int32_t* positions, int64_t s, int64_t half, double log_theta, double d,
                                double sign, float* cosine, float* sine) {
  for (int64_t i = FirstItem(); i < s * half; i += ItemStep()) {
    const int64_t j = i % half;
    const double angle = sign * positions[i / half] * exp(-2.0 * j / d * log_theta);
    cosine[i] = static_cast<float>(cos(angle));
    sine[i] = static_cast<float>(sin(angle));
  }
}

struct RopeShape {
  int64_t rows, s, n, d;  // rows: b s n
  bool aligned;           // both halves
};

__global__ void RopeKernel(Reals x, const float* cosine, const float* sine, Reals y, RopeShape r) {
  const int64_t half = r.d / 2, chunks = (half + kChunk - 1) / kChunk;
  for (int64_t i = FirstItem(); i < r.rows * chunks; i += ItemStep()) {
    const int64_t row = i / chunks, at = (i - row * chunks) * kChunk, base = row * r.d + at;
    const int64_t angle = row / r.n % r.s * half + at;
    const int n = ChunkSize(at, half);
    const Chunk x0 = Load(x, base, n, r.aligned), x1 = Load(x, base + half, n, r.aligned);
    Chunk y0, y1;
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      const float co = j < n ? cosine[angle + j] : 0, si = j < n ? sine[angle + j] : 0;
      y0.x[j] = x0.x[j] * co - x1.x[j] * si;
      y1.x[j] = x1.x[j] * co + x0.x[j] * si;
    }
    Store(y, base, n, r.aligned, y0);
    Store(y, base + half, n, r.aligned, y1);
    if (r.d % 2 == 1 && at == 0) StoreOne(y, row * r.d + r.d - 1, LoadOne(x, row * r.d + r.d - 1));
  }
  if (r.d == 1) {  // no pairs
    for (int64_t i = FirstItem(); i < r.rows; i += ItemStep()) StoreOne(y, i, LoadOne(x, i));
  }
}

int64_t RopeWorkspace(const Node&, const ShardingRule& rule, absl::Span<const int64_t> extent,
                      absl::Span<const Tensor>, absl::Span<const Tensor>) {
  const int64_t entries = extent[rule.Find("s")] * (extent[rule.Find("d")] / 2);
  return 2 * WorkspacePart(entries * static_cast<int64_t>(sizeof(float)));
}

absl::Status Rope(KernelContext& c) {
  const int64_t s = c.Extent("s"), d = c.Extent("d"), half = d / 2;
  const RopeShape r = {c.Extent("b") * s * c.Extent("n"), s, c.Extent("n"), d,
                       d % 2 == 0 && HasAlignedRows(c.in[0], half) && HasAlignedRows(c.out[0], half)};
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals y, RealsOf(c.out[0]));
  Workspace w(c);
  float *const cosine = w.Take<float>(s * half), *const sine = w.Take<float>(s * half);
  LaunchShape l = FlatLaunch(s * half);
  RETURN_IF_ERROR(MOE_LAUNCH(RopeTableKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c),
                             c.in[1].As<int32_t>(), s, half, std::log(c.node->Float("theta")),
                             static_cast<double>(d), c.node->BoolOr("inverse", false) ? -1.0 : 1.0, cosine,
                             sine));
  l = FlatLaunch(r.rows * std::max<int64_t>(1, CeilDiv(half, kChunk)));
  return MOE_LAUNCH(RopeKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), x, cosine, sine, y, r);
}

// Rows of e elements, element by element: there are few in a row of probabilities.
__global__ void SoftmaxKernel(Reals x, Reals p, int64_t rows, int64_t e) {
  for (int64_t row = FirstRow(); row < rows; row += RowStep()) {
    float max = -1e30f, sum = 0;
    for (int64_t j = threadIdx.x; j < e; j += blockDim.x) max = fmaxf(max, LoadOne(x, row * e + j));
    max = RowMax(max);
    for (int64_t j = threadIdx.x; j < e; j += blockDim.x) sum += expf(LoadOne(x, row * e + j) - max);
    sum = RowSum(sum);
    for (int64_t j = threadIdx.x; j < e; j += blockDim.x)
      StoreOne(p, row * e + j, expf(LoadOne(x, row * e + j) - max) / sum);
  }
}

__global__ void SoftmaxGradKernel(Reals p, Reals dp, Reals dx, int64_t rows, int64_t e) {
  for (int64_t row = FirstRow(); row < rows; row += RowStep()) {
    float dot = 0;
    for (int64_t j = threadIdx.x; j < e; j += blockDim.x)
      dot += LoadOne(p, row * e + j) * LoadOne(dp, row * e + j);
    dot = RowSum(dot);
    for (int64_t j = threadIdx.x; j < e; j += blockDim.x)
      StoreOne(dx, row * e + j, LoadOne(p, row * e + j) * (LoadOne(dp, row * e + j) - dot));
  }
}

__global__ void LogSumExpKernel(Reals x, Reals lse, int64_t rows, int64_t e) {
  for (int64_t row = FirstRow(); row < rows; row += RowStep()) {
    float max = -1e30f, sum = 0;
    for (int64_t j = threadIdx.x; j < e; j += blockDim.x) max = fmaxf(max, LoadOne(x, row * e + j));
    max = RowMax(max);
    for (int64_t j = threadIdx.x; j < e; j += blockDim.x) sum += expf(LoadOne(x, row * e + j) - max);
    sum = RowSum(sum);
    if (threadIdx.x == 0) StoreOne(lse, row, max + logf(sum));
  }
}

__global__ void LogSumExpGradKernel(Reals x, Reals lse, Reals dy, Reals dx, int64_t rows, int64_t e) {
  for (int64_t i = FirstItem(); i < rows * e; i += ItemStep())
    StoreOne(dx, i, expf(LoadOne(x, i) - LoadOne(lse, i / e)) * LoadOne(dy, i / e));
}

int64_t RoutedTokens(const KernelContext& c) { return c.Extent("b") * c.Extent("c") * c.Extent("t"); }

absl::Status Softmax(KernelContext& c) {
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals p, RealsOf(c.out[0]));
  const LaunchShape l = RowLaunch(RoutedTokens(c), c.Extent("e"));
  return MOE_LAUNCH(SoftmaxKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), x, p, RoutedTokens(c),
                    c.Extent("e"));
}

absl::Status SoftmaxGrad(KernelContext& c) {
  ASSIGN_OR_RETURN(const Reals p, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals dp, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals dx, RealsOf(c.out[0]));
  const LaunchShape l = RowLaunch(RoutedTokens(c), c.Extent("e"));
  return MOE_LAUNCH(SoftmaxGradKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), p, dp, dx, RoutedTokens(c),
                    c.Extent("e"));
}

absl::Status LogSumExp(KernelContext& c) {
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals lse, RealsOf(c.out[0]));
  const LaunchShape l = RowLaunch(RoutedTokens(c), c.Extent("e"));
  return MOE_LAUNCH(LogSumExpKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), x, lse, RoutedTokens(c),
                    c.Extent("e"));
}

absl::Status LogSumExpGrad(KernelContext& c) {
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals lse, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals dy, RealsOf(c.in[2]));
  ASSIGN_OR_RETURN(const Reals dx, RealsOf(c.out[0]));
  const LaunchShape l = FlatLaunch(RoutedTokens(c) * c.Extent("e"));
  return MOE_LAUNCH(LogSumExpGradKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), x, lse, dy, dx,
                    RoutedTokens(c), c.Extent("e"));
}

struct MergeArgs {
  Reals o[2], lse[2], merged, merged_lse;
};

__global__ void AttentionMergeKernel(MergeArgs a, RowShape s) {
  for (int64_t row = FirstRow(); row < s.rows; row += RowStep()) {
    const float l0 = LoadOne(a.lse[0], row), l1 = LoadOne(a.lse[1], row), max = Larger(l0, l1);
    const bool sees = !(max <= -1e29f);
    const float w0 = sees ? expf(l0 - max) : 0, w1 = sees ? expf(l1 - max) : 0;
    if (threadIdx.x == 0) StoreOne(a.merged_lse, row, sees ? max + logf(w0 + w1) : -1e30f);
    for (int64_t at = FirstChunk(); at < s.width; at += ChunkStep()) {
      const int n = ChunkSize(at, s.width);
      Chunk y = Load(a.o[0], row * s.width + at, n, s.aligned);
      const Chunk other = Load(a.o[1], row * s.width + at, n, s.aligned);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        y.x[i] = sees ? (w0 * y.x[i] + w1 * other.x[i]) / (w0 + w1) : 0.0f;
      }
      Store(a.merged, row * s.width + at, n, s.aligned, y);
    }
  }
}

absl::Status AttentionMerge(KernelContext& c) {
  RowShape s = {c.Extent("b") * c.Extent("s") * c.Extent("n"), c.Extent("d"), true};
  for (const Tensor* t : {&c.in[0], &c.in[2], &c.out[0]})
    s.aligned = s.aligned && HasAlignedRows(*t, s.width);
  MergeArgs a;
  for (int i = 0; i < 2; ++i) {
    ASSIGN_OR_RETURN(a.o[i], RealsOf(c.in[2 * i]));
    ASSIGN_OR_RETURN(a.lse[i], RealsOf(c.in[2 * i + 1]));
  }
  ASSIGN_OR_RETURN(a.merged, RealsOf(c.out[0]));
  ASSIGN_OR_RETURN(a.merged_lse, RealsOf(c.out[1]));
  const LaunchShape l = ChunkRowLaunch(s.rows, s.width);
  return MOE_LAUNCH(AttentionMergeKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), a, s);
}

}  // namespace

void RegisterCudaNn(KernelRegistry& r) {
  AddForFloats(r, "nn.add_rms_norm", &AddRmsNorm);
  AddForFloats(r, "nn.attention_merge", &AttentionMerge);
  AddForFloats(r, "nn.log_sum_exp", &LogSumExp);
  AddForFloats(r, "nn.log_sum_exp_grad", &LogSumExpGrad);
  AddForFloats(r, "nn.rms_norm", &RmsNorm);
  AddForFloats(r, "nn.rms_norm_dw", &RmsNormDw, &RmsNormDwWorkspace);
  AddForFloats(r, "nn.rms_norm_dx", &RmsNormDx);
  AddForFloats(r, "nn.rope", &Rope, &RopeWorkspace);
  AddForFloats(r, "nn.softmax", &Softmax);
  AddForFloats(r, "nn.softmax_grad", &SoftmaxGrad);
  AddForFloats(r, "nn.swiglu", &Swiglu, &RaggedWorkspaceOf);
  AddForFloats(r, "nn.swiglu_grad", &SwigluGrad, &RaggedWorkspaceOf);
}

}  // namespace moe::kernels
