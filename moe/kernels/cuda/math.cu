// Elementwise maps, reductions and constants.

#include <algorithm>

#include "absl/container/inlined_vector.h"
#include "moe/kernels/cuda/families.h"
#include "moe/kernels/cuda/map.h"
#include "moe/kernels/cuda/nest.h"
#include "moe/kernels/larger.h"

namespace moe::kernels {
namespace {

struct MulOf {
  __device__ void operator()(const float (&x)[2], float (&y)[1]) const { y[0] = x[0] * x[1]; }
};
struct ScaleOf {
  float by;
  __device__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = x[0] * by; }
};
struct AtLeastOf {
  float value;
  __device__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = x[0] < value ? value : x[0]; }
};
struct LogOf {
  __device__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = logf(x[0]); }
};
struct ReciprocalOf {
  __device__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = 1 / x[0]; }
};
struct SiluOf {
  __device__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = x[0] * Sigmoid(x[0]); }
};
struct SiluGradOf {
  __device__ void operator()(const float (&x)[2], float (&y)[1]) const {
    const float s = Sigmoid(x[0]);
    y[0] = x[1] * s * (1 + x[0] * (1 - s));
  }
};
absl::Status Mul(KernelContext& c) { return Map<2, 1>(c, MulOf()); }
absl::Status Scale(KernelContext& c) {
  return Map<1, 1>(c, ScaleOf{static_cast<float>(c.node->Float("by"))});
}
absl::Status AtLeast(KernelContext& c) {
  return Map<1, 1>(c, AtLeastOf{static_cast<float>(c.node->Float("value"))});
}
absl::Status Log(KernelContext& c) { return Map<1, 1>(c, LogOf()); }
absl::Status Reciprocal(KernelContext& c) { return Map<1, 1>(c, ReciprocalOf()); }
absl::Status Silu(KernelContext& c) { return Map<1, 1>(c, SiluOf()); }
absl::Status SiluGrad(KernelContext& c) { return Map<2, 1>(c, SiluGradOf()); }

__global__ void ConstantKernel(Reals y, float value) { StoreOne(y, 0, value); }
__global__ void ConstantIntKernel(int32_t* y, int32_t value) { *y = value; }

absl::Status Constant(KernelContext& c) {
  ASSIGN_OR_RETURN(const Reals y, RealsOf(c.out[0]));
  return MOE_LAUNCH(ConstantKernel, 1, 1, 0, CudaStreamOf(c), y, static_cast<float>(c.node->Float("value")));
}
absl::Status ConstantInt(KernelContext& c) {
  return MOE_LAUNCH(ConstantIntKernel, 1, 1, 0, CudaStreamOf(c), c.out[0].As<int32_t>(),
                    static_cast<int32_t>(c.node->Float("value")));
}

// Partial sums of so many blocks, whatever the device, so that the sum is the same everywhere.
constexpr int64_t kSumBlocks = 512;
constexpr int kSumThreads = 256;

__global__ void SquaresKernel(Reals x, int64_t elements, RaggedRows rows, int64_t row_elements, bool aligned,
                              float* partial) {
  if (rows.header != nullptr) {
    x.data = rows.header->data[0];
    elements = rows.header->rows * row_elements;
  }
  Chunk sum = Filled(0);
  for (int64_t at = FirstItem() * kChunk; at < elements; at += ItemStep() * kChunk) {
    const Chunk v = Load(x, at, ChunkSize(at, elements), aligned);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) sum.x[i] += v.x[i] * v.x[i];
  }
  float all = 0;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) all += sum.x[i];
  all = BlockReduce(all, SumOf(), 0.0f);
  if (threadIdx.x == 0) partial[blockIdx.x] = all;
}

// One block of one warp.
__global__ void SumPartialsKernel(const float* partial, int64_t n, Reals y) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kWarp) sum += partial[i];
  sum = WarpReduce(sum, SumOf());
  if (threadIdx.x == 0) StoreOne(y, 0, static_cast<float>(sum));
}

int64_t SquaresWorkspace(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent,
                         absl::Span<const Tensor> in, absl::Span<const Tensor> out) {
  return RaggedWorkspaceOf(n, rule, extent, in, out) + WorkspacePart(kSumBlocks * sizeof(float));
}

absl::Status SumSquares(KernelContext& c) {
  Workspace w(c);
  ASSIGN_OR_RETURN(const RaggedRows rows, PlaceLikeOperand(c, w));
  float* const partial = w.Take<float>(kSumBlocks);
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals y, RealsOf(c.out[0]));
  const Tensor& t = c.in[0];
  const int64_t elements = t.is_ragged() ? LikelyRows(t) * t.row_elements : t.elements();
  LaunchShape s = FlatLaunch(CeilDiv(elements, kChunk), kSumThreads);
  s.blocks = std::min(s.blocks, kSumBlocks);
  RETURN_IF_ERROR(MOE_LAUNCH(SquaresKernel, GridOf(s), BlockOf(s), 0, CudaStreamOf(c), x,
                             t.is_ragged() ? 0 : elements, rows, t.row_elements, HasAlignedRows(t, kChunk),
                             partial));
  return MOE_LAUNCH(SumPartialsKernel, 1, kWarp, 0, CudaStreamOf(c), partial, s.blocks, y);
}

// A thread per element of the result, over the factors that it lacks.
__global__ void ReduceMaxKernel(Reals x, Reals y, NestShape nest) {
  for (int64_t i = FirstItem(); i < nest.outer; i += ItemStep()) {
    const int64_t from = nest.Offset(i, nest.outer_extent, nest.outer_stride, nest.num_outer);
    float max = -1e30f;
    for (int64_t j = 0; j < nest.inner; ++j) {
      max = Larger(max,
                   LoadOne(x, from + nest.Offset(j, nest.inner_extent, nest.inner_stride, nest.num_inner)));
    }
    StoreOne(y, i, max);
  }
}

absl::Status ReduceMax(KernelContext& c) {
  ASSIGN_OR_RETURN(const NestShape nest, NestOf(c));
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals y, RealsOf(c.out[0]));
  const LaunchShape s = FlatLaunch(nest.outer);
  return MOE_LAUNCH(ReduceMaxKernel, GridOf(s), BlockOf(s), 0, CudaStreamOf(c), x, y, nest);
}

__global__ void BroadcastKernel(Reals x, Reals y, NestShape nest) {
  for (int64_t i = FirstItem(); i < nest.outer; i += ItemStep()) {
    StoreOne(y, i, LoadOne(x, nest.Offset(i, nest.outer_extent, nest.outer_stride, nest.num_outer)));
  }
}

absl::Status Broadcast(KernelContext& c) {
  ASSIGN_OR_RETURN(const NestShape nest, NestOf(c));
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals y, RealsOf(c.out[0]));
  const LaunchShape s = FlatLaunch(nest.outer);
  return MOE_LAUNCH(BroadcastKernel, GridOf(s), BlockOf(s), 0, CudaStreamOf(c), x, y, nest);
}

}  // namespace

void RegisterCudaMath(KernelRegistry& r) {
  AddForFloats(r, "math.at_least", &AtLeast, &RaggedWorkspaceOf);
  AddForFloats(r, "math.broadcast", &Broadcast);
  AddForFloats(r, "math.constant", &Constant);
  AddForFloats(r, "math.log", &Log, &RaggedWorkspaceOf);
  AddForFloats(r, "math.mul", &Mul, &RaggedWorkspaceOf);
  AddForFloats(r, "math.reciprocal", &Reciprocal, &RaggedWorkspaceOf);
  AddForFloats(r, "math.reduce_max", &ReduceMax);
  AddForFloats(r, "math.scale", &Scale, &RaggedWorkspaceOf);
  AddForFloats(r, "math.silu", &Silu, &RaggedWorkspaceOf);
  AddForFloats(r, "math.silu_grad", &SiluGrad, &RaggedWorkspaceOf);
  AddForFloats(r, "math.sum_squares", &SumSquares, &SquaresWorkspace);
  r.Add({"math.constant", Backend::kCuda, DType::kS32, &ConstantInt});
}

}  // namespace moe::kernels
