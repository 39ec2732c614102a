#include <algorithm>
#include <cmath>

#include "moe/kernels/cpu/families.h"
#include "moe/kernels/cpu/gemm.h"
#include "moe/kernels/cpu/simd.h"

// Head and cross-entropy. Logits exist for kTokens tokens by kWords words at a time.

namespace moe::kernels {
namespace {

constexpr int64_t kTokens = 128, kWords = 256;

struct Shape {
  explicit Shape(const KernelContext& c)
      : tokens(c.Extent("b") * c.Extent("s")),
        h(c.Extent("h")),
        u(c.Extent("u")),
        w(c.Extent("w")),
        v0(c.Offset("u") * w),
        words(std::clamp<int64_t>(c.node->Int("vocab") - v0, 0, u * w)) {}
  // Words of block iu that exist: [Begin, End) of the local rows of the weight.
  int64_t Begin(int64_t iu) const { return std::min(words, iu * w); }
  int64_t End(int64_t iu) const { return std::min(words, (iu + 1) * w); }
  int64_t tokens, h, u, w;
  int64_t v0;     // global id of the first local word
  int64_t words;  // local words that exist; the rest is padding
};

template <typename T>
int64_t StatsWorkspace(const Node&, const ShardingRule&, absl::Span<const int64_t>, absl::Span<const Tensor>,
                       absl::Span<const Tensor>) {
  return kTokens * kWords * sizeof(T);
}

template <typename T>
absl::Status HeadStats(KernelContext& c) {
  const Shape a(c);
  const Simd<T>& simd = Simd<T>::Get();
  const T *x = c.in[0].As<T>(), *weight = c.in[1].As<T>();
  const int32_t* labels = c.in[2].As<int32_t>();
  T *max = c.out[0].As<T>(), *sum = c.out[1].As<T>(), *label_logit = c.out[2].As<T>();
  T* logits = static_cast<T*>(c.workspace);
  std::fill_n(max, a.tokens * a.u, T(-1e30));
  std::fill_n(sum, a.tokens * a.u, T(0));
  std::fill_n(label_logit, a.tokens, T(0));
  for (int64_t t0 = 0; t0 < a.tokens; t0 += kTokens) {
    const int64_t nt = std::min(kTokens, a.tokens - t0);
    for (int64_t iu = 0; iu < a.u; ++iu) {
      for (int64_t r0 = a.Begin(iu); r0 < a.End(iu); r0 += kWords) {
        const int64_t nr = std::min(kWords, a.End(iu) - r0);
        Gemm<T>(false, true, nt, nr, a.h, T(1), x + t0 * a.h, a.h, weight + r0 * a.h, a.h, T(0), logits,
                kWords);
        for (int64_t i = 0; i < nt; ++i) {
          T* row = logits + i * kWords;
          const int64_t label = labels[t0 + i] - a.v0 - r0;
          if (label >= 0 && label < nr) label_logit[t0 + i] = row[label];
          T &m = max[(t0 + i) * a.u + iu], &s = sum[(t0 + i) * a.u + iu];
          const T new_max = std::max(m, simd.max(row, nr));
          s = s * std::exp(m - new_max) + simd.exp_sum(row, T(1), new_max, row, nr);
          m = s == s ? new_max : s;
        }
      }
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status HeadStatsGrad(KernelContext& c) {
  const Shape a(c);
  const Simd<T>& simd = Simd<T>::Get();
  const T *x = c.in[0].As<T>(), *weight = c.in[1].As<T>();
  const int32_t* labels = c.in[2].As<int32_t>();
  const T *max = c.in[3].As<T>(), *dsum = c.in[4].As<T>(), *dlabel = c.in[5].As<T>();
  T *dx = c.out[0].As<T>(), *dweight = c.out[1].As<T>();
  T* logits = static_cast<T*>(c.workspace);
  std::fill_n(dx, a.tokens * a.h, T(0));
  std::fill_n(dweight, a.u * a.w * a.h, T(0));
  for (int64_t iu = 0; iu < a.u; ++iu) {
    for (int64_t r0 = a.Begin(iu); r0 < a.End(iu); r0 += kWords) {
      const int64_t nr = std::min(kWords, a.End(iu) - r0);
      for (int64_t t0 = 0; t0 < a.tokens; t0 += kTokens) {
        const int64_t nt = std::min(kTokens, a.tokens - t0);
        Gemm<T>(false, true, nt, nr, a.h, T(1), x + t0 * a.h, a.h, weight + r0 * a.h, a.h, T(0), logits,
                kWords);
        for (int64_t i = 0; i < nt; ++i) {
          T* row = logits + i * kWords;
          const int64_t iu_of_token = (t0 + i) * a.u + iu;
          simd.exp_sum(row, T(1), max[iu_of_token], row, nr);
          simd.scale(row, dsum[iu_of_token], row, nr);
          const int64_t label = labels[t0 + i] - a.v0 - r0;
          if (label >= 0 && label < nr) row[label] += dlabel[t0 + i];
        }
        Gemm<T>(false, false, nt, a.h, nr, T(1), logits, kWords, weight + r0 * a.h, a.h, T(1), dx + t0 * a.h,
                a.h);
        Gemm<T>(true, false, nr, a.h, nt, T(1), logits, kWords, x + t0 * a.h, a.h, T(1), dweight + r0 * a.h,
                a.h);
      }
    }
  }
  return absl::OkStatus();
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  r.Add({"nn.head_stats", Backend::kCpu, dtype, &HeadStats<T>, &StatsWorkspace<T>});
  r.Add({"nn.head_stats_grad", Backend::kCpu, dtype, &HeadStatsGrad<T>, &StatsWorkspace<T>});
}

}  // namespace

void RegisterCpuLoss(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
}

}  // namespace moe::kernels
