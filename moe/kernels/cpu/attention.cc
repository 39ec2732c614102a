#include <algorithm>
#include <cmath>

#include "moe/kernels/cpu/attention_simd.h"
#include "moe/kernels/cpu/families.h"
#include "moe/kernels/cpu/simd.h"
#include "moe/kernels/larger.h"

namespace moe::kernels {
namespace {

template <typename T>
int64_t ForwardWorkspace(const Node&, const ShardingRule& rule, absl::Span<const int64_t> extent,
                         absl::Span<const Tensor>, absl::Span<const Tensor>) {
  return AttentionForwardWorkspace(extent[rule.Find("d")]) * sizeof(T);
}

template <typename T>
int64_t BackwardWorkspace(const Node&, const ShardingRule& rule, absl::Span<const int64_t> extent,
                          absl::Span<const Tensor>, absl::Span<const Tensor>) {
  return AttentionBackwardWorkspace(extent[rule.Find("d")]) * sizeof(T);
}

// Calls f(head) for the heads of all samples, with operands and results in place: q, k, v, positions, o and
// lse.
template <typename T, typename F>
void ForEachHead(const KernelContext& c, const Tensor& o, const Tensor& lse, F f) {
  const int64_t k = c.Extent("k"), g = c.Extent("g");
  AttentionHead<T> head{};
  head.s = c.Extent("s");
  head.t = c.Extent("t");
  head.d = c.Extent("d");
  head.q_stride = k * g * head.d;
  head.k_stride = k * head.d;
  head.lse_stride = k * g;
  head.scale = static_cast<T>(1 / std::sqrt(static_cast<double>(head.d)));
  head.workspace = static_cast<T*>(c.workspace);
  // Blocks of the sequence that do not see one another count as samples of their own; only positions tell
  // them apart.
  const int64_t blocks = c.ExtentOr("r", 1);
  for (int64_t ib = 0; ib < c.Extent("b") * blocks; ++ib) {
    head.q_positions = c.in[3].As<int32_t>() + ib % blocks * head.s;
    head.k_positions = c.in[4].As<int32_t>() + ib % blocks * head.t;
    for (int64_t n = 0; n < k * g; ++n) {
      const int64_t q = ib * head.s * head.q_stride + n * head.d;
      const int64_t kv = ib * head.t * head.k_stride + n / g * head.d;
      head.q = c.in[0].As<T>() + q;
      head.k = c.in[1].As<T>() + kv;
      head.v = c.in[2].As<T>() + kv;
      head.o = o.As<T>() + q;
      head.lse = lse.As<T>() + ib * head.s * head.lse_stride + n;
      f(head, q, kv);
    }
  }
}

template <typename T>
absl::Status Attention(KernelContext& c) {
  ForEachHead<T>(c, c.out[0], c.out[1],
                 [](AttentionHead<T>& head, int64_t, int64_t) { AttentionSimd<T>::Get().forward(head); });
  return absl::OkStatus();
}

template <typename T>
absl::Status AttentionGrad(KernelContext& c) {
  for (int i : {1, 2}) std::fill_n(c.out[i].As<T>(), c.out[i].elements(), T(0));
  ForEachHead<T>(c, c.in[5], c.in[6], [&](AttentionHead<T>& head, int64_t q, int64_t kv) {
    head.dy = c.in[7].As<T>() + q;
    head.dq = c.out[0].As<T>() + q;
    head.dk = c.out[1].As<T>() + kv;
    head.dv = c.out[2].As<T>() + kv;
    AttentionSimd<T>::Get().backward(head);
  });
  return absl::OkStatus();
}

template <typename T>
absl::Status AttentionMerge(KernelContext& c) {
  const int64_t d = c.Extent("d");
  const Simd<T>& simd = Simd<T>::Get();
  const T *lse = c.in[1].As<T>(), *lse2 = c.in[3].As<T>();
  for (int64_t i = 0; i < c.out[1].elements(); ++i) {
    const T max = Larger(lse[i], lse2[i]);
    T* y = c.out[0].As<T>() + i * d;
    if (max <= static_cast<T>(kAttentionMasked / 10)) {
      c.out[1].As<T>()[i] = static_cast<T>(kAttentionMasked);
      std::fill_n(y, d, T(0));
      continue;
    }
    const T w = std::exp(lse[i] - max), w2 = std::exp(lse2[i] - max), share = w / (w + w2),
            share2 = w2 / (w + w2);
    c.out[1].As<T>()[i] = max + std::log(w + w2);
    simd.scale(c.in[0].As<T>() + i * d, share, y, d);
    simd.axpy(share2, c.in[2].As<T>() + i * d, y, d);
  }
  return absl::OkStatus();
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  r.Add({"nn.attention", Backend::kCpu, dtype, &Attention<T>, &ForwardWorkspace<T>});
  r.Add({"nn.attention_merge", Backend::kCpu, dtype, &AttentionMerge<T>});
  r.Add({"nn.attention_grad", Backend::kCpu, dtype, &AttentionGrad<T>, &BackwardWorkspace<T>});
}

}  // namespace

void RegisterCpuAttention(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
}

}  // namespace moe::kernels
