#include <algorithm>
#include <cstring>
#include <type_traits>

#include "moe/device/convert.h"
#include "moe/kernels/cpu/families.h"
#include "moe/kernels/cpu/gemm.h"
#include "moe/kernels/cpu/simd.h"
#include "moe/kernels/loops.h"
#include "moe/kernels/rounded_operands.h"
#include "moe/kernels/widen.h"

namespace moe::kernels {
namespace {

template <typename In, typename Out>
bool DenseByGemm(KernelContext& c) {
  const ShardingRule& rule = *c.rule;
  const TermStrides a = StridesOf(rule.operands[0], c.extent, -1),
                    b = StridesOf(rule.operands[1], c.extent, -1),
                    y = StridesOf(rule.results[0], c.extent, -1);
  ContractionFactors factors;
  for (int f = 0; f < rule.num_factors(); ++f) {
    factors.push_back({c.extent[f], a.element[f], b.element[f], y.element[f]});
  }
  return ContractByGemm(factors, c.in[0].As<In>(), c.in[1].As<In>(), c.out[0].As<Out>(), false);
}

// Grouped matmul. The rows of one expert (the first factor of the ragged term) are contiguous, so every
// expert is a contraction with one row factor in place of the expert, its cells and the ragged dim. The dense
// term may have the expert, but no other factor of the cells. Nothing is done for experts without rows, but
// their gradient is zero.
template <typename In, typename Out>
bool RaggedByGemm(KernelContext& c) {
  const ShardingRule& rule = *c.rule;
  const Tensor* tensors[3] = {&c.in[0], &c.in[1], &c.out[0]};
  const FactorTerm* terms[3] = {&rule.operands[0], &rule.operands[1], &rule.results[0]};
  TermStrides strides[3];
  const Tensor* ragged = nullptr;
  const FactorTerm* ragged_term = nullptr;
  for (int i = 0; i < 3; ++i) {
    strides[i] = StridesOf(*terms[i], c.extent, tensors[i]->ragged);
    if (tensors[i]->is_ragged() && ragged == nullptr) {
      ragged = tensors[i];
      ragged_term = terms[i];
    }
  }
  absl::InlinedVector<bool, 16> in_cells(rule.num_factors(), false);
  for (int d = 0; d <= ragged->ragged; ++d) {
    if ((*ragged_term)[d].size() != 1) return false;
    in_cells[(*ragged_term)[d][0]] = true;
  }
  const FactorId expert = (*ragged_term)[0][0];
  if (ragged->ragged == 0) return false;
  for (int i = 0; i < 3; ++i) {
    if (tensors[i]->is_ragged()) continue;
    for (int f = 0; f < rule.num_factors(); ++f) {
      if (in_cells[f] && f != expert && strides[i].element[f] != 0) return false;
    }
  }
  ContractionFactors factors;
  factors.push_back({0, 0, 0, 0});  // the rows of one expert
  for (int f = 0; f < rule.num_factors(); ++f) {
    if (!in_cells[f]) {
      factors.push_back({c.extent[f], strides[0].element[f], strides[1].element[f], strides[2].element[f]});
    }
  }
  int64_t* row_stride[3] = {&factors[0].a, &factors[0].b, &factors[0].c};
  for (int i = 0; i < 3; ++i) *row_stride[i] = tensors[i]->is_ragged() ? strides[i].row_elements : 0;

  const int64_t experts = c.extent[expert], cells = experts > 0 ? ragged->cells / experts : 0;
  const bool dense_result = !c.out[0].is_ragged();
  const bool sums_experts = dense_result && strides[2].element[expert] == 0 && experts > 1;
  if (dense_result) {
    const int64_t n = c.out[0].elements();
    std::fill(c.out[0].As<Out>(), c.out[0].As<Out>() + n, Out(0));
  }
  int64_t start = 0;
  for (int64_t e = 0; e < experts; ++e) {
    int64_t rows = 0;
    for (int64_t i = 0; i < cells; ++i) rows += ragged->sizes[e * cells + i];
    if (rows > 0) {
      factors[0].extent = rows;
      int64_t at[3];
      for (int i = 0; i < 3; ++i) {
        at[i] = tensors[i]->is_ragged() ? start * strides[i].row_elements : e * strides[i].element[expert];
      }
      if (!ContractByGemm(factors, c.in[0].As<In>() + at[0], c.in[1].As<In>() + at[1],
                          c.out[0].As<Out>() + at[2], sums_experts, 1)) {
        return false;
      }
    }
    start += rows;
  }
  return true;
}

template <typename T>
absl::Status Einsum(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  if (c.in.size() == 2) {
    const bool ragged = c.in[0].is_ragged() || c.in[1].is_ragged();
    if (ragged ? RaggedByGemm<T, T>(c) : DenseByGemm<T, T>(c)) return absl::OkStatus();
  }
  return ReduceProducts<T>(c, Reduce::kSum);
}

const Kernel& EinsumInF32() {
  static const Kernel& kernel = *new Kernel{"math.einsum", Backend::kCpu, DType::kF32, &Einsum<float>};
  return kernel;
}

absl::Status EinsumF64(KernelContext& c) {
  return RoundsOperands(*c.node) ? RunOnRounded<double>(c, &Einsum<double>) : Einsum<double>(c);
}

// Rounded operands are multiplied in f32.
Prepare RoundingOf(const Node& n) { return RoundsOperands(n) ? &RoundOperand<float> : nullptr; }

absl::Status EinsumF32(KernelContext& c) {
  const Prepare rounding = RoundingOf(*c.node);
  return rounding != nullptr ? RunWidened(EinsumInF32(), c, rounding) : Einsum<float>(c);
}

int64_t EinsumF32Workspace(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent,
                           absl::Span<const Tensor> in, absl::Span<const Tensor> out) {
  const Prepare rounding = RoundingOf(n);
  return rounding != nullptr ? WidenedWorkspace(EinsumInF32(), n, rule, extent, in, out, rounding) : 0;
}

// Where the CPU has products of bf16 and the einsum is such products; else by way of f32, for which the
// workspace has room.
absl::Status EinsumNarrow(KernelContext& c) {
  const bool narrow = c.in.size() == 2 && c.in[0].dtype == DType::kBF16 && c.in[1].dtype == DType::kBF16;
  if (narrow && !RoundsOperands(*c.node) && ChosenBf16Product() != nullptr) {
    RETURN_IF_ERROR(PlaceLikeOperand(c));
    const bool ragged = c.in[0].is_ragged() || c.in[1].is_ragged();
    const bool wide = c.out[0].dtype == DType::kF32;
    if (ragged ? (wide ? RaggedByGemm<Bf16, float>(c) : RaggedByGemm<Bf16, Bf16>(c))
               : (wide ? DenseByGemm<Bf16, float>(c) : DenseByGemm<Bf16, Bf16>(c))) {
      return absl::OkStatus();
    }
  }
  return RunWidened(EinsumInF32(), c, RoundingOf(*c.node));
}

int64_t EinsumNarrowWorkspace(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent,
                              absl::Span<const Tensor> in, absl::Span<const Tensor> out) {
  return WidenedWorkspace(EinsumInF32(), n, rule, extent, in, out, RoundingOf(n));
}

template <typename T>
absl::Status Add(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  const T *x = c.in[0].As<T>(), *y = c.in[1].As<T>();
  T* z = c.out[0].As<T>();
  const int64_t n = c.out[0].elements();
  if (n == 0) return absl::OkStatus();
  if (IsScalar(c.in[0])) {
    Simd<T>::Get().shift(y, x[0], z, n);
  } else if (IsScalar(c.in[1])) {
    Simd<T>::Get().shift(x, y[0], z, n);
  } else {
    Simd<T>::Get().add(x, y, z, n);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status Mul(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  const T *x = c.in[0].As<T>(), *y = c.in[1].As<T>();
  T* z = c.out[0].As<T>();
  const int64_t n = c.out[0].elements();
  if (n == 0) return absl::OkStatus();
  if (IsScalar(c.in[0])) {
    Simd<T>::Get().scale(y, x[0], z, n);
  } else if (IsScalar(c.in[1])) {
    Simd<T>::Get().scale(x, y[0], z, n);
  } else {
    Simd<T>::Get().mul(x, y, z, n);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status Scale(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  Simd<T>::Get().scale(c.in[0].As<T>(), static_cast<T>(c.node->Float("by")), c.out[0].As<T>(),
                       c.out[0].elements());
  return absl::OkStatus();
}

template <typename T>
absl::Status Silu(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  Simd<T>::Get().silu(c.in[0].As<T>(), c.out[0].As<T>(), c.out[0].elements());
  return absl::OkStatus();
}

template <typename T>
absl::Status SiluGrad(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  Simd<T>::Get().silu_grad(c.in[0].As<T>(), c.in[1].As<T>(), c.out[0].As<T>(), c.out[0].elements());
  return absl::OkStatus();
}

template <typename To, typename From>
void CastRow(const void* x, void* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<To, bool>) {
      static_cast<uint8_t*>(y)[i] = static_cast<const From*>(x)[i] != 0;
    } else {
      static_cast<To*>(y)[i] = static_cast<To>(static_cast<const From*>(x)[i]);
    }
  }
}

template <typename From>
void CastRowTo(DType to, const void* x, void* y, int64_t n) {
  switch (to) {
    case DType::kPred:
      return CastRow<bool, From>(x, y, n);
    case DType::kS32:
      return CastRow<int32_t, From>(x, y, n);
    case DType::kS64:
      return CastRow<int64_t, From>(x, y, n);
    case DType::kF64:
      return CastRow<double, From>(x, y, n);
    default:
      return CastRow<float, From>(x, y, n);
  }
}

void CastRowBetween(DType from, DType to, const void* x, void* y, int64_t n) {
  switch (from) {
    case DType::kPred:
      return CastRowTo<uint8_t>(to, x, y, n);
    case DType::kS32:
      return CastRowTo<int32_t>(to, x, y, n);
    case DType::kS64:
      return CastRowTo<int64_t>(to, x, y, n);
    case DType::kF64:
      return CastRowTo<double>(to, x, y, n);
    default:
      return CastRowTo<float>(to, x, y, n);
  }
}

bool IsHalf(DType d) { return d == DType::kBF16 || d == DType::kF16; }

// Halves go by way of f32, in blocks.
absl::Status Cast(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  const Tensor &x = c.in[0], &y = c.out[0];
  if (x.dtype == DType::kF8E4M3 || y.dtype == DType::kF8E4M3) {
    return absl::UnimplementedError("math.cast of f8e4m3, which has scales of its own");
  }
  constexpr int64_t kBlock = 1024;
  float block[kBlock];
  const int64_t n = y.elements();
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t m = std::min(kBlock, n - i);
    const char* from = static_cast<const char*>(x.data) + i * ByteSize(x.dtype);
    char* to = static_cast<char*>(y.data) + i * ByteSize(y.dtype);
    DType is = x.dtype;
    if (IsHalf(x.dtype)) {
      float* const wide = y.dtype == DType::kF32 ? reinterpret_cast<float*>(to) : block;
      device::ToF32(x.dtype, from, wide, m);
      if (y.dtype == DType::kF32) continue;
      from = reinterpret_cast<const char*>(block);
      is = DType::kF32;
    }
    if (!IsHalf(y.dtype)) {
      CastRowBetween(is, y.dtype, from, to, m);
      continue;
    }
    if (is != DType::kF32) {
      CastRowBetween(is, DType::kF32, from, block, m);
      from = reinterpret_cast<const char*>(block);
    }
    device::FromF32(y.dtype, reinterpret_cast<const float*>(from), to, m);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status SumSquares(KernelContext& c) {
  // Pieces bound the error of a long sum in float.
  constexpr int64_t kPiece = 4096;
  double sum = 0;
  const int64_t n = c.in[0].elements();
  const T* x = c.in[0].As<T>();
  for (int64_t i = 0; i < n; i += kPiece) sum += Simd<T>::Get().dot(x + i, x + i, std::min(kPiece, n - i));
  c.out[0].As<T>()[0] = static_cast<T>(sum);
  return absl::OkStatus();
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  auto add = [&](const char* op, KernelFn fn) { r.Add({op, Backend::kCpu, dtype, fn}); };
  add("math.add", &Add<T>);
  add("math.mul", &Mul<T>);
  add("math.scale", &Scale<T>);
  add("math.silu", &Silu<T>);
  add("math.silu_grad", &SiluGrad<T>);
  add("math.sum_squares", &SumSquares<T>);
}

}  // namespace

void RegisterCpuMath(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
  r.Add({"math.einsum", Backend::kCpu, DType::kF64, &EinsumF64});
  r.Add({"math.einsum", Backend::kCpu, DType::kF32, &EinsumF32, &EinsumF32Workspace});
  for (const DType dtype : {DType::kBF16, DType::kF16})
    r.Add({"math.einsum", Backend::kCpu, dtype, &EinsumNarrow, &EinsumNarrowWorkspace});
  for (const DType dtype : {DType::kS32, DType::kBF16, DType::kF16, DType::kF32, DType::kF64}) {
    r.Add({"math.cast", Backend::kCpu, dtype, &Cast});
  }
}

}  // namespace moe::kernels
