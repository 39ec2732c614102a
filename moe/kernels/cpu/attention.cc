#include <algorithm>
#include <cmath>

#include "moe/kernels/cpu/families.h"
#include "moe/kernels/cpu/gemm.h"
#include "moe/kernels/cpu/simd.h"

// Blockwise attention (Dao 2023): scores exist for kBlock queries by kBlock keys at a time. Matrix products
// are GEMMs on strided blocks of the operands, the rest goes row by row. A tile ends where positions jump, so
// that a tile of keys after all of a tile's queries is seen as such, and skipped, in any order of the
// sequence.

namespace moe {
namespace {

constexpr int64_t kBlock = 64;
constexpr int64_t kLeastTile = 8;
constexpr double kMasked = -1e30;  // finite: no NaN from differences

struct Shape {
  explicit Shape(const KernelContext& c)
      : blocks(c.ExtentOr("r", 1)),
        b(c.Extent("b") * blocks),
        s(c.Extent("s")),
        t(c.Extent("t")),
        k(c.Extent("k")),
        g(c.Extent("g")),
        d(c.Extent("d")),
        q_stride(k * g * d),
        k_stride(k * d),
        scale(1 / std::sqrt(static_cast<double>(d))) {}
  int64_t heads() const { return k * g; }
  int64_t blocks;  // of the sequence, that do not see one another: samples of their own
  int64_t b, s, t, k, g, d;
  int64_t q_stride, k_stride;  // from one position to the next
  double scale;
};

struct Range {
  int32_t low, high;
};
Range RangeOf(const int32_t* p, int64_t n) {
  Range r{p[0], p[0]};
  for (int64_t i = 1; i < n; ++i) r = {std::min(r.low, p[i]), std::max(r.high, p[i])};
  return r;
}

// Length of the tile that begins at `p`.
int64_t TileOf(const int32_t* p, int64_t left) {
  const int64_t most = std::min(kBlock, left);
  int64_t n = 1;
  while (n < most && p[n] == p[n - 1] + 1) ++n;
  // Short runs, in an order that has no long ones, are not worth a tile each.
  return n < std::min(kLeastTile, left) ? most : n;
}

// What a block of queries sees of a block of keys.
enum class Visible { kNone, kSome, kAll };
Visible Compare(Range queries, Range keys) {
  if (keys.low > queries.high) return Visible::kNone;
  return keys.high <= queries.low ? Visible::kAll : Visible::kSome;
}

template <typename T>
int64_t ForwardWorkspace(const Node&, const ShardingRule&, absl::Span<const int64_t>,
                         absl::Span<const Tensor>, absl::Span<const Tensor>) {
  return (kBlock * kBlock + 2 * kBlock) * sizeof(T);
}

template <typename T>
absl::Status Attention(KernelContext& c) {
  const Shape a(c);
  const Simd<T>& simd = Simd<T>::Get();
  T* const scores = static_cast<T*>(c.workspace);
  T* const max = scores + kBlock * kBlock;
  T* const sum = max + kBlock;
  const T scale = static_cast<T>(a.scale), masked = static_cast<T>(kMasked);
  for (int64_t ib = 0; ib < a.b; ++ib) {
    const int32_t* qp = c.in[3].As<int32_t>() + ib % a.blocks * a.s;
    const int32_t* kp = c.in[4].As<int32_t>() + ib % a.blocks * a.t;
    for (int64_t head = 0; head < a.heads(); ++head) {
      const T* q = c.in[0].As<T>() + ib * a.s * a.q_stride + head * a.d;
      const T* k = c.in[1].As<T>() + ib * a.t * a.k_stride + head / a.g * a.d;
      const T* v = c.in[2].As<T>() + ib * a.t * a.k_stride + head / a.g * a.d;
      T* o = c.out[0].As<T>() + ib * a.s * a.q_stride + head * a.d;
      T* lse = c.out[1].As<T>() + ib * a.s * a.heads() + head;
      for (int64_t s0 = 0, ns; s0 < a.s; s0 += ns) {
        ns = TileOf(qp + s0, a.s - s0);
        const Range queries = RangeOf(qp + s0, ns);
        std::fill(max, max + ns, masked);
        std::fill(sum, sum + ns, T(0));
        for (int64_t i = 0; i < ns; ++i) std::fill_n(o + (s0 + i) * a.q_stride, a.d, T(0));
        for (int64_t t0 = 0, nt; t0 < a.t; t0 += nt) {
          nt = TileOf(kp + t0, a.t - t0);
          const Visible visible = Compare(queries, RangeOf(kp + t0, nt));
          if (visible == Visible::kNone) continue;
          Gemm<T>(false, true, ns, nt, a.d, scale, q + s0 * a.q_stride, a.q_stride, k + t0 * a.k_stride,
                  a.k_stride, T(0), scores, kBlock);
          for (int64_t i = 0; i < ns; ++i) {
            T* row = scores + i * kBlock;
            if (visible == Visible::kSome) {
              for (int64_t j = 0; j < nt; ++j) {
                if (kp[t0 + j] > qp[s0 + i]) row[j] = masked;
              }
            }
            const T new_max = std::max(max[i], simd.max(row, nt));
            if (new_max <= masked) {  // this query sees nothing yet
              std::fill(row, row + nt, T(0));
              continue;
            }
            const T keep = max[i] <= masked ? T(0) : std::exp(max[i] - new_max);
            sum[i] = sum[i] * keep + simd.exp_sum(row, T(1), new_max, row, nt);
            if (keep != T(1)) simd.scale(o + (s0 + i) * a.q_stride, keep, o + (s0 + i) * a.q_stride, a.d);
            max[i] = new_max;
          }
          Gemm<T>(false, false, ns, a.d, nt, T(1), scores, kBlock, v + t0 * a.k_stride, a.k_stride, T(1),
                  o + s0 * a.q_stride, a.q_stride);
        }
        for (int64_t i = 0; i < ns; ++i) {
          T* row = o + (s0 + i) * a.q_stride;
          if (sum[i] > 0) simd.scale(row, T(1) / sum[i], row, a.d);
          lse[(s0 + i) * a.heads()] = sum[i] > 0 ? max[i] + std::log(sum[i]) : masked;
        }
      }
    }
  }
  return absl::OkStatus();
}

template <typename T>
int64_t BackwardWorkspace(const Node&, const ShardingRule&, absl::Span<const int64_t>,
                          absl::Span<const Tensor>, absl::Span<const Tensor>) {
  return (2 * kBlock * kBlock + kBlock) * sizeof(T);
}

template <typename T>
absl::Status AttentionGrad(KernelContext& c) {
  const Shape a(c);
  const Simd<T>& simd = Simd<T>::Get();
  T* const p = static_cast<T*>(c.workspace);
  T* const ds = p + kBlock * kBlock;
  T* const delta = ds + kBlock * kBlock;
  const T scale = static_cast<T>(a.scale);
  for (Tensor& t : c.out) std::fill_n(t.As<T>(), t.elements(), T(0));
  for (int64_t ib = 0; ib < a.b; ++ib) {
    const int32_t* qp = c.in[3].As<int32_t>() + ib % a.blocks * a.s;
    const int32_t* kp = c.in[4].As<int32_t>() + ib % a.blocks * a.t;
    for (int64_t head = 0; head < a.heads(); ++head) {
      const int64_t q_offset = ib * a.s * a.q_stride + head * a.d;
      const int64_t k_offset = ib * a.t * a.k_stride + head / a.g * a.d;
      const T *q = c.in[0].As<T>() + q_offset, *k = c.in[1].As<T>() + k_offset,
              *v = c.in[2].As<T>() + k_offset;
      const T *o = c.in[5].As<T>() + q_offset, *dy = c.in[7].As<T>() + q_offset;
      const T* lse = c.in[6].As<T>() + ib * a.s * a.heads() + head;
      T *dq = c.out[0].As<T>() + q_offset, *dk = c.out[1].As<T>() + k_offset,
        *dv = c.out[2].As<T>() + k_offset;
      for (int64_t s0 = 0, ns; s0 < a.s; s0 += ns) {
        ns = TileOf(qp + s0, a.s - s0);
        const Range queries = RangeOf(qp + s0, ns);
        for (int64_t i = 0; i < ns; ++i) {
          delta[i] = simd.dot(o + (s0 + i) * a.q_stride, dy + (s0 + i) * a.q_stride, a.d);
        }
        for (int64_t t0 = 0, nt; t0 < a.t; t0 += nt) {
          nt = TileOf(kp + t0, a.t - t0);
          const Visible visible = Compare(queries, RangeOf(kp + t0, nt));
          if (visible == Visible::kNone) continue;
          Gemm<T>(false, true, ns, nt, a.d, scale, q + s0 * a.q_stride, a.q_stride, k + t0 * a.k_stride,
                  a.k_stride, T(0), p, kBlock);
          Gemm<T>(false, true, ns, nt, a.d, T(1), dy + s0 * a.q_stride, a.q_stride, v + t0 * a.k_stride,
                  a.k_stride, T(0), ds, kBlock);
          for (int64_t i = 0; i < ns; ++i) {
            T *row = p + i * kBlock, *ds_row = ds + i * kBlock;
            if (visible == Visible::kSome) {
              // Masked scores may lie far above the log-sum-exp, where exp would overflow.
              for (int64_t j = 0; j < nt; ++j) {
                if (kp[t0 + j] > qp[s0 + i]) row[j] = static_cast<T>(kMasked);
              }
            }
            simd.exp_sum(row, T(1), std::max(lse[(s0 + i) * a.heads()], static_cast<T>(-1e29)), row, nt);
            simd.softmax_ds(row, ds_row, delta[i], scale, ds_row, nt);
          }
          Gemm<T>(true, false, nt, a.d, ns, T(1), p, kBlock, dy + s0 * a.q_stride, a.q_stride, T(1),
                  dv + t0 * a.k_stride, a.k_stride);
          Gemm<T>(true, false, nt, a.d, ns, T(1), ds, kBlock, q + s0 * a.q_stride, a.q_stride, T(1),
                  dk + t0 * a.k_stride, a.k_stride);
          Gemm<T>(false, false, ns, a.d, nt, T(1), ds, kBlock, k + t0 * a.k_stride, a.k_stride, T(1),
                  dq + s0 * a.q_stride, a.q_stride);
        }
      }
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status AttentionMerge(KernelContext& c) {
  const int64_t d = c.Extent("d");
  const Simd<T>& simd = Simd<T>::Get();
  const T *lse = c.in[1].As<T>(), *lse2 = c.in[3].As<T>();
  for (int64_t i = 0; i < c.out[1].elements(); ++i) {
    const T max = std::max(lse[i], lse2[i]);
    T* y = c.out[0].As<T>() + i * d;
    if (max <= static_cast<T>(kMasked / 10)) {
      c.out[1].As<T>()[i] = static_cast<T>(kMasked);
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

}  // namespace moe
