#include "moe/kernels/cpu/simd.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

// This order is Highway's: the file includes itself once per instruction set.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "moe/kernels/cpu/simd.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
#include "moe/kernels/cpu/exp-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace moe::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <typename T>
using Tag = hn::ScalableTag<T>;

// Calls f(load, store, i) for every full vector at i, then once for the rest through buffers, so that nothing
// is read or written beyond n. load(p) reads at p + i; store(v, p) writes at p + i.
template <typename T, typename F>
HWY_ATTR void ForVectors(int64_t n, F f) {
  const Tag<T> d;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    f([d, i](const T* p) HWY_ATTR { return hn::LoadU(d, p + i); },
      [d, i](hn::Vec<Tag<T>> v, T* p) HWY_ATTR { hn::StoreU(v, d, p + i); });
  }
  if (i == n) return;
  const size_t bytes = (n - i) * sizeof(T);
  f(
      [d, i, bytes](const T* p) HWY_ATTR {
        HWY_ALIGN T buffer[HWY_MAX_BYTES / sizeof(T)] = {};
        std::memcpy(buffer, p + i, bytes);
        return hn::Load(d, buffer);
      },
      [d, i, bytes](hn::Vec<Tag<T>> v, T* p) HWY_ATTR {
        HWY_ALIGN T buffer[HWY_MAX_BYTES / sizeof(T)];
        hn::Store(v, d, buffer);
        std::memcpy(p + i, buffer, bytes);
      });
}

template <typename V>
HWY_INLINE V Sigmoid(V x) {
  const hn::DFromV<V> d;
  using T = hn::TFromD<decltype(d)>;
  const V one = hn::Set(d, T(1));
  // Beyond 80 the sigmoid of -x is below 1e-34; the bound keeps Exp in its range.
  const V negated = hn::Min(hn::Neg(x), hn::Set(d, T(std::is_same_v<T, float> ? 80 : 700)));
  return hn::Div(one, hn::Add(one, ExpOrNaN(d, negated)));
}

template <typename T>
HWY_ATTR void Add(const T* x, const T* y, T* z, int64_t n) {
  ForVectors<T>(n, [=](auto load, auto store) HWY_ATTR { store(hn::Add(load(x), load(y)), z); });
}

template <typename T>
HWY_ATTR void Mul(const T* x, const T* y, T* z, int64_t n) {
  ForVectors<T>(n, [=](auto load, auto store) HWY_ATTR { store(hn::Mul(load(x), load(y)), z); });
}

template <typename T>
HWY_ATTR void Scale(const T* x, T by, T* y, int64_t n) {
  const auto a = hn::Set(Tag<T>(), by);
  ForVectors<T>(n, [=](auto load, auto store) HWY_ATTR { store(hn::Mul(load(x), a), y); });
}

template <typename T>
HWY_ATTR void Shift(const T* x, T by, T* y, int64_t n) {
  const auto a = hn::Set(Tag<T>(), by);
  ForVectors<T>(n, [=](auto load, auto store) HWY_ATTR { store(hn::Add(load(x), a), y); });
}

template <typename T>
HWY_ATTR void Axpy(T a, const T* x, T* y, int64_t n) {
  const auto va = hn::Set(Tag<T>(), a);
  ForVectors<T>(n, [=](auto load, auto store) HWY_ATTR { store(hn::MulAdd(va, load(x), load(y)), y); });
}

template <typename T>
HWY_ATTR void ScaledMul(T a, const T* x, const T* y, T* z, int64_t n) {
  const auto va = hn::Set(Tag<T>(), a);
  ForVectors<T>(n, [=](auto load, auto store) HWY_ATTR { store(hn::Mul(hn::Mul(va, load(x)), load(y)), z); });
}

template <typename T>
HWY_ATTR void AddScaledMul(T a, const T* x, const T* y, T* z, int64_t n) {
  const auto va = hn::Set(Tag<T>(), a);
  ForVectors<T>(n, [=](auto load, auto store)
                       HWY_ATTR { store(hn::MulAdd(hn::Mul(va, load(x)), load(y), load(z)), z); });
}

// Two accumulators hide the latency of the additions; the rest beyond n reads as zero and adds nothing.
template <typename T>
HWY_ATTR T Dot(const T* x, const T* y, int64_t n) {
  const Tag<T> d;
  const int64_t lanes = hn::Lanes(d);
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d), sum2 = hn::Zero(d), sum3 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    sum0 = hn::MulAdd(hn::LoadU(d, x + i), hn::LoadU(d, y + i), sum0);
    sum1 = hn::MulAdd(hn::LoadU(d, x + i + lanes), hn::LoadU(d, y + i + lanes), sum1);
    sum2 = hn::MulAdd(hn::LoadU(d, x + i + 2 * lanes), hn::LoadU(d, y + i + 2 * lanes), sum2);
    sum3 = hn::MulAdd(hn::LoadU(d, x + i + 3 * lanes), hn::LoadU(d, y + i + 3 * lanes), sum3);
  }
  const T *xi = x + i, *yi = y + i;
  auto* rest = &sum0;
  ForVectors<T>(n - i, [=](auto load, auto) HWY_ATTR { *rest = hn::MulAdd(load(xi), load(yi), *rest); });
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3))));
}

template <typename T>
HWY_ATTR T Dot3(const T* x, const T* y, const T* z, int64_t n) {
  const Tag<T> d;
  const int64_t lanes = hn::Lanes(d);
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const auto xy0 = hn::Mul(hn::LoadU(d, x + i), hn::LoadU(d, y + i));
    const auto xy1 = hn::Mul(hn::LoadU(d, x + i + lanes), hn::LoadU(d, y + i + lanes));
    sum0 = hn::MulAdd(xy0, hn::LoadU(d, z + i), sum0);
    sum1 = hn::MulAdd(xy1, hn::LoadU(d, z + i + lanes), sum1);
  }
  const T *xi = x + i, *yi = y + i, *zi = z + i;
  auto* s = &sum0;
  ForVectors<T>(
      n - i, [=](auto load, auto) HWY_ATTR { *s = hn::MulAdd(hn::Mul(load(xi), load(yi)), load(zi), *s); });
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
}

template <typename T>
HWY_ATTR T Max(const T* x, int64_t n) {
  const Tag<T> d;
  const int64_t lanes = hn::Lanes(d);
  auto max = hn::Set(d, T(-1e30));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) max = hn::Max(max, hn::LoadU(d, x + i));
  T result = hn::GetLane(hn::MaxOfLanes(d, max));
  for (; i < n; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

template <typename T>
HWY_ATTR T ExpSum(const T* x, T a, T b, T* y, int64_t n) {
  const Tag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const auto va = hn::Set(d, a), vb = hn::Set(d, b);
  auto sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto e = ExpOrNaN(d, hn::MulSub(va, hn::LoadU(d, x + i), vb));
    hn::StoreU(e, d, y + i);
    sum = hn::Add(sum, e);
  }
  T result = hn::GetLane(hn::SumOfLanes(d, sum));
  if (i < n) {
    HWY_ALIGN T buffer[HWY_MAX_BYTES / sizeof(T)] = {};
    std::memcpy(buffer, x + i, (n - i) * sizeof(T));
    hn::Store(ExpOrNaN(d, hn::MulSub(va, hn::Load(d, buffer), vb)), d, buffer);
    for (int64_t j = 0; i + j < n; ++j) {
      y[i + j] = buffer[j];
      result += buffer[j];
    }
  }
  return result;
}

template <typename T>
HWY_ATTR void Silu(const T* x, T* y, int64_t n) {
  ForVectors<T>(n, [=](auto load, auto store) HWY_ATTR {
    const auto v = load(x);
    store(hn::Mul(v, Sigmoid(v)), y);
  });
}

// sigmoid(x) (1 + x (1 - sigmoid(x)))
template <typename V>
HWY_INLINE V SiluSlope(V x, V s) {
  const auto one = hn::Set(hn::DFromV<V>(), hn::TFromD<hn::DFromV<V>>(1));
  return hn::Mul(s, hn::MulAdd(x, hn::Sub(one, s), one));
}

template <typename T>
HWY_ATTR void SiluGrad(const T* x, const T* dy, T* dx, int64_t n) {
  ForVectors<T>(n, [=](auto load, auto store) HWY_ATTR {
    const auto v = load(x);
    store(hn::Mul(load(dy), SiluSlope(v, Sigmoid(v))), dx);
  });
}

template <typename T>
HWY_ATTR void Swiglu(const T* gate, const T* up, T* y, int64_t n) {
  ForVectors<T>(n, [=](auto load, auto store) HWY_ATTR {
    const auto g = load(gate);
    store(hn::Mul(hn::Mul(g, Sigmoid(g)), load(up)), y);
  });
}

template <typename T>
HWY_ATTR void SwigluGrad(const T* gate, const T* up, const T* dy, T* dgate, T* dup, int64_t n) {
  ForVectors<T>(n, [=](auto load, auto store) HWY_ATTR {
    const auto g = load(gate), u = load(up), v = load(dy), s = Sigmoid(g);
    store(hn::Mul(hn::Mul(v, u), SiluSlope(g, s)), dgate);
    store(hn::Mul(v, hn::Mul(g, s)), dup);
  });
}

// Rows go in blocks: their sums first, then their square roots, so that none waits for another.
constexpr int64_t kNormRows = 8;

template <typename T>
HWY_ATTR void InverseRms(const T* x, double eps, int64_t n, int64_t rows, T* r) {
  T squares[kNormRows];
  for (int64_t i = 0; i < rows; ++i) squares[i] = Dot(x + i * n, x + i * n, n);
  for (int64_t i = 0; i < rows; ++i) {
    r[i] = static_cast<T>(1 / std::sqrt(static_cast<double>(squares[i]) / n + eps));
  }
}

template <typename T>
HWY_ATTR void RmsNorm(const T* x, const T* w, double eps, T* y, int64_t n, int64_t rows) {
  T r[kNormRows];
  for (int64_t first = 0; first < rows; first += kNormRows) {
    const int64_t block = std::min(kNormRows, rows - first), at = first * n;
    InverseRms(x + at, eps, n, block, r);
    for (int64_t i = 0; i < block; ++i) ScaledMul(r[i], x + at + i * n, w, y + at + i * n, n);
  }
}

template <typename T>
HWY_ATTR void RmsNormDx(const T* x, const T* w, const T* dy, double eps, T* dx, int64_t n, int64_t rows) {
  const Tag<T> d;
  T r[kNormRows], sum[kNormRows];
  for (int64_t first = 0; first < rows; first += kNormRows) {
    const int64_t block = std::min(kNormRows, rows - first), at = first * n;
    InverseRms(x + at, eps, n, block, r);
    for (int64_t i = 0; i < block; ++i) sum[i] = Dot3(x + at + i * n, w, dy + at + i * n, n);
    for (int64_t i = 0; i < block; ++i) {
      const T *xi = x + at + i * n, *dyi = dy + at + i * n;
      T* dxi = dx + at + i * n;
      const auto vr = hn::Set(d, r[i]), vk = hn::Set(d, r[i] * r[i] * r[i] * sum[i] / n);
      ForVectors<T>(n, [=](auto load, auto store) HWY_ATTR {
        store(hn::NegMulAdd(vk, load(xi), hn::Mul(vr, hn::Mul(load(dyi), load(w)))), dxi);
      });
    }
  }
}

template <typename T>
HWY_ATTR void RmsNormDw(const T* x, const T* dy, double eps, T* dw, int64_t n, int64_t rows) {
  T r[kNormRows];
  for (int64_t first = 0; first < rows; first += kNormRows) {
    const int64_t block = std::min(kNormRows, rows - first), at = first * n;
    InverseRms(x + at, eps, n, block, r);
    for (int64_t i = 0; i < block; ++i) AddScaledMul(r[i], x + at + i * n, dy + at + i * n, dw, n);
  }
}

template <typename T>
HWY_ATTR void Rotate(const T* x, const T* cos, const T* sin, T* y, int64_t n, int64_t rows, int64_t stride) {
  const Tag<T> d;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto c = hn::LoadU(d, cos + i), s = hn::LoadU(d, sin + i);
    for (int64_t r = 0; r < rows; ++r) {
      const auto a = hn::LoadU(d, x + r * stride + i), b = hn::LoadU(d, x + r * stride + n + i);
      hn::StoreU(hn::NegMulAdd(b, s, hn::Mul(a, c)), d, y + r * stride + i);
      hn::StoreU(hn::MulAdd(a, s, hn::Mul(b, c)), d, y + r * stride + n + i);
    }
  }
  for (; i < n; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      const T a = x[r * stride + i], b = x[r * stride + n + i];
      y[r * stride + i] = a * cos[i] - b * sin[i];
      y[r * stride + n + i] = b * cos[i] + a * sin[i];
    }
  }
}

template <typename T>
HWY_ATTR void SoftmaxDs(const T* p, const T* dp, T delta, T scale, T* ds, int64_t n) {
  const Tag<T> d;
  const auto vd = hn::Set(d, delta), vs = hn::Set(d, scale);
  ForVectors<T>(n, [=](auto load, auto store)
                       HWY_ATTR { store(hn::Mul(hn::Mul(vs, load(p)), hn::Sub(load(dp), vd)), ds); });
}

template <typename T>
HWY_ATTR bool AdamW(const AdamWStep<T>& step, const T* p, const T* g, const T* m, const T* v, T* p_out,
                    T* m_out, T* v_out, int64_t n) {
  const Tag<T> d;
  const auto factor = hn::Set(d, step.factor), lr = hn::Set(d, step.learning_rate),
             eps = hn::Set(d, step.eps);
  const auto b1 = hn::Set(d, step.beta1), c1 = hn::Set(d, step.one_minus_beta1);
  const auto b2 = hn::Set(d, step.beta2), c2 = hn::Set(d, step.one_minus_beta2);
  const auto i1 = hn::Set(d, step.inverse_bias1), i2 = hn::Set(d, step.inverse_bias2);
  const auto decay = hn::Set(d, step.weight_decay), zero = hn::Zero(d);
  const auto largest = hn::Set(d, step.largest), most = hn::Set(d, std::numeric_limits<T>::max());
  // All bits are set in the lanes of elements that do not fit, and move at all: those after n do not.
  const auto update = [=](auto load, auto store) HWY_ATTR {
    const auto grad = hn::Mul(factor, load(g)), old = load(p), old_m = load(m), old_v = load(v);
    const auto m1 = hn::MulAdd(b1, old_m, hn::Mul(c1, grad));
    const auto v1 = hn::MulAdd(b2, old_v, hn::Mul(c2, hn::Mul(grad, grad)));
    const auto by = hn::Div(hn::Mul(m1, i1), hn::Add(hn::Sqrt(hn::Mul(v1, i2)), eps));
    const auto p1 = hn::NegMulAdd(lr, hn::MulAdd(decay, old, by), old);
    const auto fits = hn::And(hn::Le(hn::Abs(p1), largest), hn::Le(v1, most));  // NaN does not
    store(hn::IfThenElse(fits, m1, old_m), m_out);
    store(hn::IfThenElse(fits, v1, old_v), v_out);
    store(hn::IfThenElse(fits, p1, old), p_out);
    return hn::VecFromMask(d, hn::Not(hn::Or(fits, hn::Eq(m1, zero))));
  };
  auto beyond = zero;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    beyond = hn::Or(beyond, update([d, i](const T* q) HWY_ATTR { return hn::LoadU(d, q + i); },
                                   [d, i](hn::Vec<Tag<T>> x, T* q) HWY_ATTR { hn::StoreU(x, d, q + i); }));
  }
  auto* const all = &beyond;
  ForVectors<T>(n - i, [=](auto load, auto store) HWY_ATTR {
    *all = hn::Or(*all, update([=](const T* q) HWY_ATTR { return load(q + i); },
                               [=](hn::Vec<Tag<T>> x, T* q) HWY_ATTR { store(x, q + i); }));
  });
  return hn::AllFalse(d, hn::MaskFromVec(beyond));
}

template <typename T>
void Fill(Simd<T>* s) {
  s->add = &Add<T>;
  s->mul = &Mul<T>;
  s->scale = &Scale<T>;
  s->shift = &Shift<T>;
  s->axpy = &Axpy<T>;
  s->scaled_mul = &ScaledMul<T>;
  s->dot = &Dot<T>;
  s->max = &Max<T>;
  s->exp_sum = &ExpSum<T>;
  s->silu = &Silu<T>;
  s->silu_grad = &SiluGrad<T>;
  s->swiglu = &Swiglu<T>;
  s->swiglu_grad = &SwigluGrad<T>;
  s->rms_norm = &RmsNorm<T>;
  s->rms_norm_dx = &RmsNormDx<T>;
  s->rms_norm_dw = &RmsNormDw<T>;
  s->rotate = &Rotate<T>;
  s->softmax_ds = &SoftmaxDs<T>;
  s->adamw = &AdamW<T>;
}

void FillF32(Simd<float>* s) { Fill(s); }
void FillF64(Simd<double>* s) { Fill(s); }
const char* Name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace moe::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moe::kernels {

HWY_EXPORT(FillF32);
HWY_EXPORT(FillF64);
HWY_EXPORT(Name);

template <>
const Simd<float>& Simd<float>::Get() {
  static const Simd<float> table = [] {
    Simd<float> s;
    HWY_DYNAMIC_DISPATCH(FillF32)(&s);
    return s;
  }();
  return table;
}

template <>
const Simd<double>& Simd<double>::Get() {
  static const Simd<double> table = [] {
    Simd<double> s;
    HWY_DYNAMIC_DISPATCH(FillF64)(&s);
    return s;
  }();
  return table;
}

const char* SimdTargetName() { return HWY_DYNAMIC_DISPATCH(Name)(); }

}  // namespace moe::kernels
#endif  // HWY_ONCE
