#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "moe/kernels/loops.h"
#include "moe/kernels/reference/families.h"
#include "moe/kernels/rounded_operands.h"

namespace moe::kernels {
namespace {

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

template <typename T>
absl::Status Constant(KernelContext& c) {
  c.out[0].As<T>()[0] = static_cast<T>(c.node->Float("value"));
  return absl::OkStatus();
}

template <typename T>
absl::Status SumOfProducts(KernelContext& c) {
  return ReduceProducts<T>(c, Reduce::kSum);
}

template <typename T>
absl::Status Einsum(KernelContext& c) {
  return RoundsOperands(*c.node) ? RunOnRounded<T>(c, &SumOfProducts<T>) : SumOfProducts<T>(c);
}

template <typename T>
absl::Status ReduceMax(KernelContext& c) {
  return ReduceProducts<T>(c, Reduce::kMax);
}

absl::Status Reshape(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  const size_t bytes = c.in[0].elements() * ByteSize(c.in[0].dtype);
  if (bytes > 0) std::memcpy(c.out[0].data, c.in[0].data, bytes);
  return absl::OkStatus();
}

absl::Status PermuteBlocks(KernelContext& c) {
  const std::vector<int64_t>& order = c.node->Ints("order");
  return CopyBlocks(c, c.node->Int("dim"), static_cast<int64_t>(order.size()),
                    [&](int64_t i) { return order[i]; });
}

absl::Status Rotate(KernelContext& c) {
  const int64_t blocks = c.node->Int("blocks");
  return CopyBlocks(c, c.node->Int("dim"), blocks, [blocks](int64_t i) { return (i + blocks - 1) % blocks; });
}

template <typename T>
absl::Status Add(KernelContext& c) {
  return Map<T, 2>(c, [](const auto& x) { return x[0] + x[1]; });
}

template <typename T>
absl::Status Mul(KernelContext& c) {
  return Map<T, 2>(c, [](const auto& x) { return x[0] * x[1]; });
}

template <typename T>
absl::Status Scale(KernelContext& c) {
  const double by = c.node->Float("by");
  return Map<T, 1>(c, [by](const auto& x) { return x[0] * by; });
}

template <typename T>
absl::Status Silu(KernelContext& c) {
  return Map<T, 1>(c, [](const auto& x) { return x[0] * Sigmoid(x[0]); });
}

template <typename T>
absl::Status SiluGrad(KernelContext& c) {
  return Map<T, 2>(c, [](const auto& x) {
    const double s = Sigmoid(x[0]);
    return x[1] * s * (1 + x[0] * (1 - s));
  });
}

template <typename T>
absl::Status Log(KernelContext& c) {
  return Map<T, 1>(c, [](const auto& x) { return std::log(x[0]); });
}

template <typename T>
absl::Status Reciprocal(KernelContext& c) {
  return Map<T, 1>(c, [](const auto& x) { return 1 / x[0]; });
}

template <typename T>
absl::Status AtLeast(KernelContext& c) {
  const double value = c.node->Float("value");
  return Map<T, 1>(c, [value](const auto& x) { return std::max(x[0], value); });
}

absl::Status Cast(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  const Tensor &x = c.in[0], &y = c.out[0];
  if (!HasElementAccess(x.dtype) || !HasElementAccess(y.dtype)) {
    return absl::UnimplementedError(absl::StrCat("math.cast from ", DTypeName(x.dtype), " to ",
                                                 DTypeName(y.dtype),
                                                 "; supported are pred, s32, s64, f32 and f64"));
  }
  const int64_t n = x.elements();
  for (int64_t i = 0; i < n; ++i) {
    StoreElement(y.dtype, y.data, i, LoadElement(x.dtype, x.data, i));
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status SumSquares(KernelContext& c) {
  double sum = 0;
  const int64_t n = c.in[0].elements();
  for (int64_t i = 0; i < n; ++i) {
    const double x = c.in[0].As<T>()[i];
    sum += x * x;
  }
  c.out[0].As<T>()[0] = static_cast<T>(sum);
  return absl::OkStatus();
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  auto add = [&](const char* op, KernelFn fn) { r.Add({op, Backend::kReference, dtype, fn}); };
  add("math.add", &Add<T>);
  add("math.at_least", &AtLeast<T>);
  add("math.broadcast", &SumOfProducts<T>);
  add("math.cast", &Cast);
  add("math.constant", &Constant<T>);
  add("math.einsum", &Einsum<T>);
  add("math.log", &Log<T>);
  add("math.mul", &Mul<T>);
  add("math.permute_blocks", &PermuteBlocks);
  add("math.reciprocal", &Reciprocal<T>);
  add("math.reduce_max", &ReduceMax<T>);
  add("math.reshape", &Reshape);
  add("math.rotate", &Rotate);
  add("math.scale", &Scale<T>);
  add("math.silu", &Silu<T>);
  add("math.silu_grad", &SiluGrad<T>);
  add("math.sum_squares", &SumSquares<T>);
}

}  // namespace

void RegisterReferenceMath(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
  for (const DType half : {DType::kBF16, DType::kF16})
    r.Add({"math.reshape", Backend::kReference, half, &Reshape});
  // Integers: labels, counts and choices are moved and added, no more.
  r.Add({"math.add", Backend::kReference, DType::kS32, &Add<int32_t>});
  r.Add({"math.cast", Backend::kReference, DType::kS32, &Cast});
  r.Add({"math.constant", Backend::kReference, DType::kS32, &Constant<int32_t>});
  r.Add({"math.permute_blocks", Backend::kReference, DType::kS32, &PermuteBlocks});
  r.Add({"math.reshape", Backend::kReference, DType::kS32, &Reshape});
  r.Add({"math.rotate", Backend::kReference, DType::kS32, &Rotate});
}

}  // namespace moe::kernels
