#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/kernels/larger.h"
#include "moe/kernels/loops.h"
#include "moe/kernels/reference/families.h"

namespace moe::kernels {
namespace {

// Local part of the head: `u` blocks of `w` words, the first of which has the global id `v0`; ids from
// `vocab` on are padding.
template <typename T>
struct Head {
  explicit Head(const KernelContext& c)
      : tokens(c.Extent("b") * c.Extent("s")),
        h(c.Extent("h")),
        u(c.Extent("u")),
        w(c.Extent("w")),
        v0(c.Offset("u") * w),
        vocab(c.node->Int("vocab")),
        x(c.in[0].As<T>()),
        weight(c.in[1].As<T>()),
        labels(c.in[2].As<int32_t>()) {}
  double Logit(int64_t token, int64_t row) const {
    double sum = 0;
    for (int64_t j = 0; j < h; ++j) sum += static_cast<double>(x[token * h + j]) * weight[row * h + j];
    return sum;
  }
  bool Exists(int64_t row) const { return v0 + row < vocab; }
  int64_t tokens, h, u, w, v0, vocab;
  const T *x, *weight;
  const int32_t* labels;
};

template <typename T>
absl::Status HeadStats(KernelContext& c) {
  const Head<T> head(c);
  for (int64_t i = 0; i < head.tokens; ++i) {
    double label_logit = 0;
    for (int64_t u = 0; u < head.u; ++u) {
      double max = -1e30, sum = 0;
      for (int64_t row = u * head.w; row < (u + 1) * head.w; ++row) {
        if (!head.Exists(row)) continue;
        const double logit = head.Logit(i, row);
        max = Larger(max, logit);
        if (head.labels[i] == head.v0 + row) label_logit = logit;
      }
      // The sum is relative to the maximum as it is stored.
      max = static_cast<T>(max);
      for (int64_t row = u * head.w; row < (u + 1) * head.w; ++row) {
        if (head.Exists(row)) sum += std::exp(head.Logit(i, row) - max);
      }
      c.out[0].As<T>()[i * head.u + u] = static_cast<T>(max);
      c.out[1].As<T>()[i * head.u + u] = static_cast<T>(sum);
    }
    c.out[2].As<T>()[i] = static_cast<T>(label_logit);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status HeadStatsGrad(KernelContext& c) {
  const Head<T> head(c);
  const T *max = c.in[3].As<T>(), *dsum = c.in[4].As<T>(), *dlabel = c.in[5].As<T>();
  std::vector<double> dx(head.tokens * head.h, 0.0), dweight(head.u * head.w * head.h, 0.0);
  for (int64_t i = 0; i < head.tokens; ++i) {
    for (int64_t row = 0; row < head.u * head.w; ++row) {
      if (!head.Exists(row)) continue;
      const int64_t iu = i * head.u + row / head.w;
      double dlogit = dsum[iu] * std::exp(head.Logit(i, row) - max[iu]);
      if (head.labels[i] == head.v0 + row) dlogit += dlabel[i];
      for (int64_t j = 0; j < head.h; ++j) {
        dx[i * head.h + j] += dlogit * head.weight[row * head.h + j];
        dweight[row * head.h + j] += dlogit * head.x[i * head.h + j];
      }
    }
  }
  for (size_t i = 0; i < dx.size(); ++i) c.out[0].As<T>()[i] = static_cast<T>(dx[i]);
  for (size_t i = 0; i < dweight.size(); ++i) c.out[1].As<T>()[i] = static_cast<T>(dweight[i]);
  return absl::OkStatus();
}

template <typename T>
absl::Status MergeSumExp(KernelContext& c) {
  const int64_t tokens = c.Extent("b") * c.Extent("s"), u = c.Extent("u");
  const T *block_max = c.in[0].As<T>(), *block_sum = c.in[1].As<T>(), *max = c.in[2].As<T>();
  for (int64_t i = 0; i < tokens; ++i) {
    double sum = 0;
    for (int64_t j = i * u; j < (i + 1) * u; ++j)
      sum += block_sum[j] * std::exp(static_cast<double>(block_max[j]) - max[i]);
    c.out[0].As<T>()[i] = static_cast<T>(sum);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status MergeSumExpGrad(KernelContext& c) {
  const int64_t tokens = c.Extent("b") * c.Extent("s"), u = c.Extent("u");
  const T *block_max = c.in[0].As<T>(), *max = c.in[1].As<T>(), *dsum = c.in[2].As<T>();
  for (int64_t i = 0; i < tokens * u; ++i) {
    c.out[0].As<T>()[i] =
        static_cast<T>(std::exp(static_cast<double>(block_max[i]) - max[i / u]) * dsum[i / u]);
  }
  return absl::OkStatus();
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  auto add = [&](const char* op, KernelFn fn) { r.Add({op, Backend::kReference, dtype, fn}); };
  add("nn.head_stats", &HeadStats<T>);
  add("nn.head_stats_grad", &HeadStatsGrad<T>);
  add("nn.merge_sum_exp", &MergeSumExp<T>);
  add("nn.merge_sum_exp_grad", &MergeSumExpGrad<T>);
}

}  // namespace

void RegisterReferenceLoss(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
}

}  // namespace moe::kernels
