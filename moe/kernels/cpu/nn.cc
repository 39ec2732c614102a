#include <algorithm>
#include <cmath>
#include <cstring>

#include "moe/kernels/cpu/families.h"
#include "moe/kernels/cpu/simd.h"
#include "moe/kernels/loops.h"

namespace moe::kernels {
namespace {

template <typename T>
absl::Status Embed(KernelContext& c) {
  const int64_t tokens = c.in[0].elements(), v0 = c.Offset("v"), v = c.Extent("v"), h = c.Extent("h");
  const int32_t* ids = c.in[0].As<int32_t>();
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t row = ids[i] - v0;
    T* x = c.out[0].As<T>() + i * h;
    if (row >= 0 && row < v) {
      std::memcpy(x, c.in[1].As<T>() + row * h, h * sizeof(T));
    } else {
      std::fill(x, x + h, T(0));
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status EmbedGrad(KernelContext& c) {
  const int64_t tokens = c.in[0].elements(), v0 = c.Offset("v"), v = c.Extent("v"), h = c.Extent("h");
  const int32_t* ids = c.in[0].As<int32_t>();
  T* table = c.out[0].As<T>();
  std::fill(table, table + v * h, T(0));
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t row = ids[i] - v0;
    if (row >= 0 && row < v) Simd<T>::Get().axpy(T(1), c.in[1].As<T>() + i * h, table + row * h, h);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status RmsNorm(KernelContext& c) {
  Simd<T>::Get().rms_norm(c.in[0].As<T>(), c.in[1].As<T>(), c.node->Float("eps"), c.out[0].As<T>(),
                          c.Extent("h"), c.Extent("b") * c.Extent("s"));
  return absl::OkStatus();
}

template <typename T>
absl::Status RmsNormDx(KernelContext& c) {
  Simd<T>::Get().rms_norm_dx(c.in[0].As<T>(), c.in[1].As<T>(), c.in[2].As<T>(), c.node->Float("eps"),
                             c.out[0].As<T>(), c.Extent("h"), c.Extent("b") * c.Extent("s"));
  return absl::OkStatus();
}

// Rows are summed in pieces, so that the error of a sum over many tokens stays small.
constexpr int64_t kRowsPerPiece = 64;

template <typename T>
int64_t RmsNormDwWorkspace(const Node&, const ShardingRule& rule, absl::Span<const int64_t> extent,
                           absl::Span<const Tensor>, absl::Span<const Tensor>) {
  return extent[rule.Find("h")] * sizeof(T);
}

template <typename T>
absl::Status RmsNormDw(KernelContext& c) {
  const int64_t h = c.Extent("h"), rows = c.Extent("b") * c.Extent("s");
  const double eps = c.node->Float("eps");
  const Simd<T>& simd = Simd<T>::Get();
  T *dw = c.out[0].As<T>(), *piece = static_cast<T*>(c.workspace);
  std::fill(dw, dw + h, T(0));
  for (int64_t first = 0; first < rows; first += kRowsPerPiece) {
    std::fill(piece, piece + h, T(0));
    simd.rms_norm_dw(c.in[0].As<T>() + first * h, c.in[1].As<T>() + first * h, eps, piece, h,
                     std::min(kRowsPerPiece, rows - first));
    simd.add(dw, piece, dw, h);
  }
  return absl::OkStatus();
}

// Cosines and sines of one position.
template <typename T>
int64_t RopeWorkspace(const Node&, const ShardingRule& rule, absl::Span<const int64_t> extent,
                      absl::Span<const Tensor>, absl::Span<const Tensor>) {
  return extent[rule.Find("d")] / 2 * (2 * sizeof(T) + 5 * sizeof(double));
}

template <typename T>
absl::Status Rope(KernelContext& c) {
  const int64_t b = c.Extent("b"), s = c.Extent("s"), n = c.Extent("n"), d = c.Extent("d"), half = d / 2;
  const double theta = c.node->Float("theta"), sign = c.node->BoolOr("inverse", false) ? -1 : 1;
  const int32_t* position = c.in[1].As<int32_t>();
  const Simd<T>& simd = Simd<T>::Get();
  double* frequency = static_cast<double*>(c.workspace);
  double *co = frequency + half, *si = co + half, *step_cos = si + half, *step_sin = step_cos + half;
  T *cosines = reinterpret_cast<T*>(step_sin + half), *sines = cosines + half;
  for (int64_t j = 0; j < half; ++j) {
    frequency[j] = std::pow(theta, -2.0 * j / d);
    step_cos[j] = std::cos(frequency[j]);
    step_sin[j] = std::sin(frequency[j]);
  }
  // Consecutive positions differ by a rotation by the frequencies; now and then the angle is taken anew, so
  // that rounding does not add up.
  constexpr int64_t kRefresh = 32;
  for (int64_t is = 0; is < s; ++is) {
    if (is % kRefresh != 0 && position[is] == position[is - 1] + 1) {
      for (int64_t j = 0; j < half; ++j) {
        const double next = co[j] * step_cos[j] - si[j] * step_sin[j];
        si[j] = si[j] * step_cos[j] + co[j] * step_sin[j];
        co[j] = next;
      }
    } else {
      for (int64_t j = 0; j < half; ++j) {
        co[j] = std::cos(position[is] * frequency[j]);
        si[j] = std::sin(position[is] * frequency[j]);
      }
    }
    for (int64_t j = 0; j < half; ++j) {
      cosines[j] = static_cast<T>(co[j]);
      sines[j] = static_cast<T>(sign * si[j]);
    }
    for (int64_t ib = 0; ib < b; ++ib) {
      const int64_t at = (ib * s + is) * n * d;
      const T* x = c.in[0].As<T>() + at;
      T* y = c.out[0].As<T>() + at;
      simd.rotate(x, cosines, sines, y, half, n, d);
      for (int64_t in = 0; in < n && d % 2 == 1; ++in) y[in * d + d - 1] = x[in * d + d - 1];
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status Swiglu(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  Simd<T>::Get().swiglu(c.in[0].As<T>(), c.in[1].As<T>(), c.out[0].As<T>(), c.out[0].elements());
  return absl::OkStatus();
}

template <typename T>
absl::Status SwigluGrad(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  Simd<T>::Get().swiglu_grad(c.in[0].As<T>(), c.in[1].As<T>(), c.in[2].As<T>(), c.out[0].As<T>(),
                             c.out[1].As<T>(), c.out[0].elements());
  return absl::OkStatus();
}

int64_t Rows(const KernelContext& c) { return c.Extent("b") * c.Extent("c") * c.Extent("t"); }

template <typename T>
absl::Status Softmax(KernelContext& c) {
  const int64_t e = c.Extent("e"), rows = Rows(c);
  const Simd<T>& simd = Simd<T>::Get();
  for (int64_t i = 0; i < rows; ++i) {
    const T* x = c.in[0].As<T>() + i * e;
    T* p = c.out[0].As<T>() + i * e;
    const T sum = simd.exp_sum(x, T(1), simd.max(x, e), p, e);
    simd.scale(p, T(1) / sum, p, e);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status SoftmaxGrad(KernelContext& c) {
  const int64_t e = c.Extent("e"), rows = Rows(c);
  const Simd<T>& simd = Simd<T>::Get();
  for (int64_t i = 0; i < rows; ++i) {
    const T *p = c.in[0].As<T>() + i * e, *dp = c.in[1].As<T>() + i * e;
    simd.softmax_ds(p, dp, simd.dot(p, dp, e), T(1), c.out[0].As<T>() + i * e, e);
  }
  return absl::OkStatus();
}

template <typename T>
int64_t LogSumExpWorkspace(const Node&, const ShardingRule& rule, absl::Span<const int64_t> extent,
                           absl::Span<const Tensor>, absl::Span<const Tensor>) {
  return extent[rule.Find("e")] * sizeof(T);
}

template <typename T>
absl::Status LogSumExp(KernelContext& c) {
  const int64_t e = c.Extent("e"), rows = Rows(c);
  const Simd<T>& simd = Simd<T>::Get();
  for (int64_t i = 0; i < rows; ++i) {
    const T* x = c.in[0].As<T>() + i * e;
    const T max = simd.max(x, e);
    c.out[0].As<T>()[i] = max + std::log(simd.exp_sum(x, T(1), max, static_cast<T*>(c.workspace), e));
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status LogSumExpGrad(KernelContext& c) {
  const int64_t e = c.Extent("e"), rows = Rows(c);
  const Simd<T>& simd = Simd<T>::Get();
  for (int64_t i = 0; i < rows; ++i) {
    T* dx = c.out[0].As<T>() + i * e;
    simd.exp_sum(c.in[0].As<T>() + i * e, T(1), c.in[1].As<T>()[i], dx, e);
    simd.scale(dx, c.in[2].As<T>()[i], dx, e);
  }
  return absl::OkStatus();
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  auto add = [&](const char* op, KernelFn fn, WorkspaceFn workspace = nullptr) {
    r.Add({op, Backend::kCpu, dtype, fn, workspace});
  };
  add("nn.embed", &Embed<T>);
  add("nn.embed_grad", &EmbedGrad<T>);
  add("nn.log_sum_exp", &LogSumExp<T>, &LogSumExpWorkspace<T>);
  add("nn.log_sum_exp_grad", &LogSumExpGrad<T>);
  add("nn.rms_norm", &RmsNorm<T>);
  add("nn.rms_norm_dw", &RmsNormDw<T>, &RmsNormDwWorkspace<T>);
  add("nn.rms_norm_dx", &RmsNormDx<T>);
  add("nn.rope", &Rope<T>, &RopeWorkspace<T>);
  add("nn.softmax", &Softmax<T>);
  add("nn.softmax_grad", &SoftmaxGrad<T>);
  add("nn.swiglu", &Swiglu<T>);
  add("nn.swiglu_grad", &SwigluGrad<T>);
}

}  // namespace

void RegisterCpuNn(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
  for (const DType half : {DType::kBF16, DType::kF16}) {  // rows are copied, whatever they hold
    r.Add({"nn.embed", Backend::kCpu, half, &Embed<uint16_t>});
  }
}

}  // namespace moe::kernels
