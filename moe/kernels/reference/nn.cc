#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/kernels/larger.h"
#include "moe/kernels/loops.h"
#include "moe/kernels/reference/families.h"

namespace moe::kernels {
namespace {

template <typename T>
absl::Status Embed(KernelContext& c) {
  const int64_t tokens = c.in[0].elements(), v0 = c.Offset("v"), v = c.Extent("v"), h = c.Extent("h");
  const int32_t* ids = c.in[0].As<int32_t>();
  const T* table = c.in[1].As<T>();
  T* x = c.out[0].As<T>();
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t row = ids[i] - v0;
    for (int64_t j = 0; j < h; ++j) x[i * h + j] = row >= 0 && row < v ? table[row * h + j] : T(0);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status EmbedGrad(KernelContext& c) {
  const int64_t tokens = c.in[0].elements(), v0 = c.Offset("v"), v = c.Extent("v"), h = c.Extent("h");
  const int32_t* ids = c.in[0].As<int32_t>();
  const T* dy = c.in[1].As<T>();
  T* table = c.out[0].As<T>();
  for (int64_t row = 0; row < v; ++row) {
    std::vector<double> sum(h, 0.0);
    for (int64_t i = 0; i < tokens; ++i) {
      if (ids[i] != v0 + row) continue;
      for (int64_t j = 0; j < h; ++j) sum[j] += dy[i * h + j];
    }
    for (int64_t j = 0; j < h; ++j) table[row * h + j] = static_cast<T>(sum[j]);
  }
  return absl::OkStatus();
}

// 1 / sqrt(mean(x^2) + eps) of a row.
template <typename T>
double InverseRms(const T* x, int64_t h, double eps) {
  double sum = 0;
  for (int64_t j = 0; j < h; ++j) sum += static_cast<double>(x[j]) * x[j];
  return 1 / std::sqrt(sum / h + eps);
}

template <typename T>
absl::Status RmsNorm(KernelContext& c) {
  const int64_t h = c.Extent("h"), rows = c.Extent("b") * c.Extent("s");
  const T* w = c.in[1].As<T>();
  for (int64_t i = 0; i < rows; ++i) {
    const T* x = c.in[0].As<T>() + i * h;
    const double r = InverseRms(x, h, c.node->Float("eps"));
    for (int64_t j = 0; j < h; ++j) c.out[0].As<T>()[i * h + j] = static_cast<T>(x[j] * r * w[j]);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status RmsNormDx(KernelContext& c) {
  const int64_t h = c.Extent("h"), rows = c.Extent("b") * c.Extent("s");
  const T* w = c.in[1].As<T>();
  for (int64_t i = 0; i < rows; ++i) {
    const T *x = c.in[0].As<T>() + i * h, *dy = c.in[2].As<T>() + i * h;
    const double r = InverseRms(x, h, c.node->Float("eps"));
    double mean = 0;
    for (int64_t j = 0; j < h; ++j) mean += static_cast<double>(dy[j]) * w[j] * x[j] / h;
    for (int64_t j = 0; j < h; ++j) {
      const double g = static_cast<double>(dy[j]) * w[j];
      c.out[0].As<T>()[i * h + j] = static_cast<T>(r * g - x[j] * r * r * r * mean);
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status RmsNormDw(KernelContext& c) {
  const int64_t h = c.Extent("h"), rows = c.Extent("b") * c.Extent("s");
  std::vector<double> sum(h, 0.0);
  for (int64_t i = 0; i < rows; ++i) {
    const T *x = c.in[0].As<T>() + i * h, *dy = c.in[1].As<T>() + i * h;
    const double r = InverseRms(x, h, c.node->Float("eps"));
    for (int64_t j = 0; j < h; ++j) sum[j] += x[j] * r * dy[j];
  }
  for (int64_t j = 0; j < h; ++j) c.out[0].As<T>()[j] = static_cast<T>(sum[j]);
  return absl::OkStatus();
}

template <typename T>
absl::Status Rope(KernelContext& c) {
  const int64_t b = c.Extent("b"), s = c.Extent("s"), n = c.Extent("n"), d = c.Extent("d"), half = d / 2;
  const double theta = c.node->Float("theta"), sign = c.node->BoolOr("inverse", false) ? -1 : 1;
  const int32_t* position = c.in[1].As<int32_t>();
  for (int64_t i = 0; i < b * s * n; ++i) {
    const T* x = c.in[0].As<T>() + i * d;
    T* y = c.out[0].As<T>() + i * d;
    for (int64_t j = 0; j < half; ++j) {
      const double angle = sign * position[i / n % s] * std::pow(theta, -2.0 * j / d);
      const double x0 = x[j], x1 = x[j + half];
      y[j] = static_cast<T>(x0 * std::cos(angle) - x1 * std::sin(angle));
      y[j + half] = static_cast<T>(x1 * std::cos(angle) + x0 * std::sin(angle));
    }
    if (d % 2 == 1) y[d - 1] = x[d - 1];
  }
  return absl::OkStatus();
}

// Index arithmetic of attention: q, o, lse are [b, s, (k g), d]; k and v are [b, t, k, d]. Blocks of the
// sequence that do not see one another count as samples of their own; only positions are told apart.
struct AttentionShape {
  explicit AttentionShape(const KernelContext& c)
      : blocks(c.ExtentOr("r", 1)),
        b(c.Extent("b") * blocks),
        s(c.Extent("s")),
        k(c.Extent("k")),
        g(c.Extent("g")),
        t(c.Extent("t")),
        d(c.Extent("d")) {}
  int64_t Query(int64_t ib, int64_t is, int64_t head) const { return (ib * s + is) * k * g + head; }
  int64_t Key(int64_t ib, int64_t it, int64_t head) const { return (ib * t + it) * k + head / g; }
  int64_t blocks, b, s, k, g, t, d;
};

template <typename T>
double Dot(const T* x, const T* y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * y[i];
  return sum;
}

template <typename T>
absl::Status Attention(KernelContext& c) {
  const AttentionShape a(c);
  const double scale = 1 / std::sqrt(static_cast<double>(a.d));
  const T *q = c.in[0].As<T>(), *k = c.in[1].As<T>(), *v = c.in[2].As<T>();
  T *o = c.out[0].As<T>(), *lse = c.out[1].As<T>();
  std::vector<double> p(a.t);
  for (int64_t ib = 0; ib < a.b; ++ib) {
    const int32_t* qp = c.in[3].As<int32_t>() + ib % a.blocks * a.s;
    const int32_t* kp = c.in[4].As<int32_t>() + ib % a.blocks * a.t;
    for (int64_t is = 0; is < a.s; ++is) {
      for (int64_t head = 0; head < a.k * a.g; ++head) {
        const int64_t iq = a.Query(ib, is, head);
        double max = -1e30, sum = 0;
        for (int64_t it = 0; it < a.t; ++it) {
          if (kp[it] > qp[is]) continue;
          p[it] = scale * Dot(q + iq * a.d, k + a.Key(ib, it, head) * a.d, a.d);
          max = std::max(max, p[it]);
        }
        for (int64_t it = 0; it < a.t; ++it) {
          p[it] = kp[it] > qp[is] ? 0 : std::exp(p[it] - max);
          sum += p[it];
        }
        lse[iq] = static_cast<T>(sum != 0 ? max + std::log(sum) : -1e30);
        for (int64_t j = 0; j < a.d; ++j) {
          double y = 0;
          for (int64_t it = 0; it < a.t; ++it) {
            if (p[it] != 0) y += p[it] / sum * v[a.Key(ib, it, head) * a.d + j];
          }
          o[iq * a.d + j] = static_cast<T>(y);
        }
      }
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status AttentionGrad(KernelContext& c) {
  const AttentionShape a(c);
  const double scale = 1 / std::sqrt(static_cast<double>(a.d));
  const T *q = c.in[0].As<T>(), *k = c.in[1].As<T>(), *v = c.in[2].As<T>();
  const T *o = c.in[5].As<T>(), *lse = c.in[6].As<T>(), *dy = c.in[7].As<T>();
  std::vector<double> dq(c.out[0].elements(), 0.0), dk(c.out[1].elements(), 0.0),
      dv(c.out[2].elements(), 0.0);
  for (int64_t ib = 0; ib < a.b; ++ib) {
    const int32_t* qp = c.in[3].As<int32_t>() + ib % a.blocks * a.s;
    const int32_t* kp = c.in[4].As<int32_t>() + ib % a.blocks * a.t;
    for (int64_t is = 0; is < a.s; ++is) {
      for (int64_t head = 0; head < a.k * a.g; ++head) {
        const int64_t iq = a.Query(ib, is, head) * a.d;
        const double l = lse[a.Query(ib, is, head)];
        const double delta = Dot(dy + iq, o + iq, a.d);  // sum over keys of p dp
        for (int64_t it = 0; it < a.t; ++it) {
          if (kp[it] > qp[is]) continue;
          const int64_t ik = a.Key(ib, it, head) * a.d;
          const double p = std::exp(scale * Dot(q + iq, k + ik, a.d) - l);
          const double ds = p * (Dot(dy + iq, v + ik, a.d) - delta) * scale;
          for (int64_t j = 0; j < a.d; ++j) {
            dq[iq + j] += ds * k[ik + j];
            dk[ik + j] += ds * q[iq + j];
            dv[ik + j] += p * dy[iq + j];
          }
        }
      }
    }
  }
  const std::vector<double>* grads[] = {&dq, &dk, &dv};
  for (int i = 0; i < 3; ++i) {
    for (size_t j = 0; j < grads[i]->size(); ++j) c.out[i].As<T>()[j] = static_cast<T>((*grads[i])[j]);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status AttentionMerge(KernelContext& c) {
  const int64_t d = c.Extent("d");
  const T *lse = c.in[1].As<T>(), *lse2 = c.in[3].As<T>();
  for (int64_t i = 0; i < c.out[1].elements(); ++i) {
    const double max = Larger(lse[i], lse2[i]);
    const bool sees = !(max <= -1e29);
    const double w = sees ? std::exp(lse[i] - max) : 0, w2 = sees ? std::exp(lse2[i] - max) : 0;
    c.out[1].As<T>()[i] = static_cast<T>(sees ? max + std::log(w + w2) : -1e30);
    for (int64_t j = i * d; j < (i + 1) * d; ++j) {
      const double y = w * c.in[0].As<T>()[j] + w2 * c.in[2].As<T>()[j];
      c.out[0].As<T>()[j] = static_cast<T>(sees ? y / (w + w2) : 0);
    }
  }
  return absl::OkStatus();
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

template <typename T>
absl::Status Swiglu(KernelContext& c) {
  return Map<T, 2>(c, [](const auto& x) { return x[0] * Sigmoid(x[0]) * x[1]; });
}

template <typename T>
absl::Status SwigluGrad(KernelContext& c) {
  return MapN<T, 3, 2>(c, [](const auto& x) {
    const double s = Sigmoid(x[0]);
    return std::array<double, 2>{x[2] * x[1] * s * (1 + x[0] * (1 - s)), x[2] * x[0] * s};
  });
}

template <typename T>
absl::Status Softmax(KernelContext& c) {
  const int64_t e = c.Extent("e"), rows = c.Extent("b") * c.Extent("c") * c.Extent("t");
  for (int64_t i = 0; i < rows; ++i) {
    const T* x = c.in[0].As<T>() + i * e;
    T* p = c.out[0].As<T>() + i * e;
    double max = -1e30, sum = 0;
    for (int64_t j = 0; j < e; ++j) max = std::max<double>(max, x[j]);
    for (int64_t j = 0; j < e; ++j) sum += std::exp(x[j] - max);
    for (int64_t j = 0; j < e; ++j) p[j] = static_cast<T>(std::exp(x[j] - max) / sum);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status SoftmaxGrad(KernelContext& c) {
  const int64_t e = c.Extent("e"), rows = c.Extent("b") * c.Extent("c") * c.Extent("t");
  for (int64_t i = 0; i < rows; ++i) {
    const T *p = c.in[0].As<T>() + i * e, *dp = c.in[1].As<T>() + i * e;
    const double sum = Dot(p, dp, e);
    for (int64_t j = 0; j < e; ++j) c.out[0].As<T>()[i * e + j] = static_cast<T>(p[j] * (dp[j] - sum));
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status LogSumExp(KernelContext& c) {
  const int64_t e = c.Extent("e"), rows = c.Extent("b") * c.Extent("c") * c.Extent("t");
  for (int64_t i = 0; i < rows; ++i) {
    const T* x = c.in[0].As<T>() + i * e;
    double max = -1e30, sum = 0;
    for (int64_t j = 0; j < e; ++j) max = std::max<double>(max, x[j]);
    for (int64_t j = 0; j < e; ++j) sum += std::exp(x[j] - max);
    c.out[0].As<T>()[i] = static_cast<T>(max + std::log(sum));
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status LogSumExpGrad(KernelContext& c) {
  const int64_t e = c.Extent("e"), rows = c.Extent("b") * c.Extent("c") * c.Extent("t");
  const T *x = c.in[0].As<T>(), *lse = c.in[1].As<T>(), *dy = c.in[2].As<T>();
  for (int64_t i = 0; i < rows * e; ++i) {
    c.out[0].As<T>()[i] = static_cast<T>(std::exp(static_cast<double>(x[i]) - lse[i / e]) * dy[i / e]);
  }
  return absl::OkStatus();
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  auto add = [&](const char* op, KernelFn fn) { r.Add({op, Backend::kReference, dtype, fn}); };
  add("nn.attention", &Attention<T>);
  add("nn.attention_grad", &AttentionGrad<T>);
  add("nn.attention_merge", &AttentionMerge<T>);
  add("nn.embed", &Embed<T>);
  add("nn.embed_grad", &EmbedGrad<T>);
  add("nn.log_sum_exp", &LogSumExp<T>);
  add("nn.log_sum_exp_grad", &LogSumExpGrad<T>);
  add("nn.rms_norm", &RmsNorm<T>);
  add("nn.rms_norm_dw", &RmsNormDw<T>);
  add("nn.rms_norm_dx", &RmsNormDx<T>);
  add("nn.rope", &Rope<T>);
  add("nn.softmax", &Softmax<T>);
  add("nn.softmax_grad", &SoftmaxGrad<T>);
  add("nn.swiglu", &Swiglu<T>);
  add("nn.swiglu_grad", &SwigluGrad<T>);
}

}  // namespace

void RegisterReferenceNn(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
}

}  // namespace moe::kernels
