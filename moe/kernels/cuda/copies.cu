// The math ops that move elements and change none: sums of two included, as the runtime adds integers too.

#include <cstring>
#include <type_traits>

#include "moe/kernels/cuda/families.h"
#include "moe/kernels/cuda/map.h"

namespace moe::kernels {
namespace {

struct SameOf {
  __device__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = x[0]; }
};

// Any dtype that has arithmetic, by way of double, which holds every s32 and all s64 up to 2^53.
__device__ double LoadAny(DType dtype, const void* p, int64_t i) {
  switch (dtype) {
    case DType::kPred:
      return static_cast<const uint8_t*>(p)[i] != 0;
    case DType::kS32:
      return static_cast<const int32_t*>(p)[i];
    case DType::kS64:
      return static_cast<double>(static_cast<const int64_t*>(p)[i]);
    case DType::kF64:
      return static_cast<const double*>(p)[i];
    case DType::kF32:
      return static_cast<const float*>(p)[i];
    default:
      return Widen16(dtype == DType::kBF16 ? Storage::kBF16 : Storage::kF16,
                     static_cast<const uint16_t*>(p)[i]);
  }
}
__device__ void StoreAny(DType dtype, void* p, int64_t i, double x) {
  switch (dtype) {
    case DType::kPred:
      static_cast<uint8_t*>(p)[i] = x != 0;
      return;
    case DType::kS32:
      static_cast<int32_t*>(p)[i] = static_cast<int32_t>(x);
      return;
    case DType::kS64:
      static_cast<int64_t*>(p)[i] = static_cast<int64_t>(x);
      return;
    case DType::kF64:
      static_cast<double*>(p)[i] = x;
      return;
    case DType::kF32:
      static_cast<float*>(p)[i] = static_cast<float>(x);
      return;
    default:
      static_cast<uint16_t*>(p)[i] =
          Narrow16(dtype == DType::kBF16 ? Storage::kBF16 : Storage::kF16, static_cast<float>(x));
  }
}

__global__ void CastKernel(DType from, const void* x, DType to, void* y, int64_t n) {
  for (int64_t i = FirstItem(); i < n; i += ItemStep()) StoreAny(to, y, i, LoadAny(from, x, i));
}

absl::Status Cast(KernelContext& c) {
  const Tensor &x = c.in[0], &y = c.out[0];
  if (StorageOfReals(x.dtype).ok() && StorageOfReals(y.dtype).ok()) return Map<1, 1>(c, SameOf());
  if (!HasElementAccess(x.dtype) || !HasElementAccess(y.dtype) || x.is_ragged()) {
    return absl::UnimplementedError(
        absl::StrCat("math.cast from ", DTypeName(x.dtype), " to ", DTypeName(y.dtype), " on CUDA"));
  }
  const LaunchShape s = FlatLaunch(y.elements());
  return MOE_LAUNCH(CastKernel, GridOf(s), BlockOf(s), 0, CudaStreamOf(c), x.dtype, x.data, y.dtype, y.data,
                    y.elements());
}

// Blocks of equal size: block i of every `blocks` of the result is block from[i] of the operand.
constexpr int kMaxBlocksMoved = 256;
struct BlockOrder {
  int64_t outer, blocks, block;  // block: in units
  int from[kMaxBlocksMoved];
};

template <typename Unit>
__global__ void MoveBlocksKernel(const Unit* x, Unit* y, BlockOrder order) {
  const int64_t all = order.outer * order.blocks * order.block;
  for (int64_t i = FirstItem(); i < all; i += ItemStep()) {
    const int64_t which = i / order.block, outer = which / order.blocks;
    y[i] = x[(outer * order.blocks + order.from[which - outer * order.blocks]) * order.block +
             (i - which * order.block)];
  }
}

template <typename Unit>
absl::Status LaunchMove(KernelContext& c, BlockOrder order) {
  order.block /= static_cast<int64_t>(sizeof(Unit));
  const LaunchShape s = FlatLaunch(order.outer * order.blocks * order.block);
  return MOE_LAUNCH(MoveBlocksKernel<Unit>, GridOf(s), BlockOf(s), 0, CudaStreamOf(c), c.in[0].As<Unit>(),
                    c.out[0].As<Unit>(), order);
}

template <typename From>
absl::Status MoveBlocks(KernelContext& c, int64_t dim, int64_t blocks, From from) {
  if (blocks > kMaxBlocksMoved) {
    return absl::UnimplementedError(
        absl::StrCat(c.node->op_name(), " of ", blocks, " blocks; CUDA has at most ", kMaxBlocksMoved));
  }
  const Tensor& x = c.in[0];
  BlockOrder order = {};
  order.outer = 1;
  order.blocks = blocks;
  order.block = ByteSize(x.dtype);
  for (int64_t d = 0; d < static_cast<int64_t>(x.dims.size()); ++d)
    (d < dim ? order.outer : order.block) *= x.dims[d];
  order.block /= blocks;
  for (int64_t i = 0; i < blocks; ++i) order.from[i] = static_cast<int>(from(i));
  if (order.block == 0) return absl::OkStatus();
  const bool aligned = IsAligned(x.data) && IsAligned(c.out[0].data);
  if (aligned && order.block % 16 == 0) return LaunchMove<uint4>(c, order);
  if (order.block % 4 == 0) return LaunchMove<uint32_t>(c, order);
  if (order.block % 2 == 0) return LaunchMove<uint16_t>(c, order);
  return LaunchMove<uint8_t>(c, order);
}

absl::Status PermuteBlocks(KernelContext& c) {
  const std::vector<int64_t>& order = c.node->Ints("order");
  return MoveBlocks(c, c.node->Int("dim"), static_cast<int64_t>(order.size()),
                    [&](int64_t i) { return order[i]; });
}

absl::Status Rotate(KernelContext& c) {
  const int64_t blocks = c.node->Int("blocks");
  return MoveBlocks(c, c.node->Int("dim"), blocks, [blocks](int64_t i) { return (i + blocks - 1) % blocks; });
}

__global__ void CopyRowsKernel(RaggedRows rows, int64_t row_bytes) {
  const int64_t bytes = rows.header->rows * row_bytes;
  const char* x = static_cast<const char*>(rows.header->data[0]);
  char* y = static_cast<char*>(rows.header->data[1]);
  if (x == y) return;
  const int64_t units = bytes / static_cast<int64_t>(sizeof(uint4));
  for (int64_t i = FirstItem(); i < units; i += ItemStep())
    reinterpret_cast<uint4*>(y)[i] = reinterpret_cast<const uint4*>(x)[i];
  for (int64_t i = units * static_cast<int64_t>(sizeof(uint4)) + FirstItem(); i < bytes; i += ItemStep())
    y[i] = x[i];
}

absl::Status Reshape(KernelContext& c) {
  const Tensor &x = c.in[0], &y = c.out[0];
  if (!x.is_ragged()) {
    if (x.data == y.data) return absl::OkStatus();
    return c.stream->Copy(y.data, x.data, x.elements() * ByteSize(x.dtype));
  }
  Workspace w(c);
  ASSIGN_OR_RETURN(const RaggedRows rows, PlaceLikeOperand(c, w));
  const int64_t row_bytes = x.row_elements * ByteSize(x.dtype);
  const LaunchShape s = FlatLaunch(CeilDiv(LikelyRows(x) * row_bytes, sizeof(uint4)));
  return MOE_LAUNCH(CopyRowsKernel, GridOf(s), BlockOf(s), 0, CudaStreamOf(c), rows, row_bytes);
}

struct AddOf {
  __device__ void operator()(const float (&x)[2], float (&y)[1]) const { y[0] = x[0] + x[1]; }
};

__global__ void AddIntsKernel(const int32_t* x, const int32_t* y, int32_t* z, int64_t n, int step_x,
                              int step_y) {
  for (int64_t i = FirstItem(); i < n; i += ItemStep()) z[i] = x[i * step_x] + y[i * step_y];
}

absl::Status Add(KernelContext& c) {
  if (c.out[0].dtype != DType::kS32) return Map<2, 1>(c, AddOf());
  const int64_t n = c.out[0].elements();
  const LaunchShape s = FlatLaunch(n);
  return MOE_LAUNCH(AddIntsKernel, GridOf(s), BlockOf(s), 0, CudaStreamOf(c), c.in[0].As<int32_t>(),
                    c.in[1].As<int32_t>(), c.out[0].As<int32_t>(), n, IsScalar(c.in[0]) ? 0 : 1,
                    IsScalar(c.in[1]) ? 0 : 1);
}

}  // namespace

void RegisterCudaCopies(KernelRegistry& r) {
  const auto add = [&](const char* op, KernelFn fn, WorkspaceFn workspace = nullptr) {
    AddForFloats(r, op, fn, workspace);
    r.Add({op, Backend::kCuda, DType::kS32, fn, workspace});
  };
  add("math.add", &Add, &RaggedWorkspaceOf);
  add("math.cast", &Cast, &RaggedWorkspaceOf);
  add("math.permute_blocks", &PermuteBlocks);
  add("math.reshape", &Reshape, &RaggedWorkspaceOf);
  add("math.rotate", &Rotate);
  add("optim.accumulate", &Add, &RaggedWorkspaceOf);
}

}  // namespace moe::kernels
