// The meaning of the ops once more, for models whose reference takes too long as plain loops: contractions,
// attention and the head as the textbook writes them, with whole matrices and a matrix product, in f64. What
// has no kernel here runs as the reference kernel. The interpreter runs on them where asked; they share no
// line with the CPU kernels but the call of the library, and are tested against the reference kernels like
// those.
#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/kernels/cpu/gemm.h"
#include "moe/kernels/kernel.h"
#include "moe/kernels/larger.h"
#include "moe/kernels/loops.h"
#include "moe/kernels/rounded_operands.h"

namespace moe::kernels {
namespace {

using Offsets = std::vector<int64_t>;

void Product(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, const double* a, const double* b,
             bool accumulate, double* c) {
  Gemm<double>(trans_a, trans_b, m, n, k, 1, a, trans_a ? m : k, b, trans_b ? k : n, accumulate ? 1 : 0, c,
               n);
}

// Offsets of all index combinations of some factors, first factor major.
Offsets OffsetsOf(const std::vector<int>& factors, const std::vector<int64_t>& extent,
                  const std::vector<int64_t>& stride) {
  Offsets out = {0};
  for (const int f : factors) {
    Offsets next;
    next.reserve(out.size() * extent[f]);
    for (const int64_t o : out) {
      for (int64_t i = 0; i < extent[f]; ++i) next.push_back(o + i * stride[f]);
    }
    out = std::move(next);
  }
  return out;
}

// y = sum of a b, over strided views of the three.
class Contraction {
 public:
  // `stride[t]` of term t (a, b, y); 0 where it lacks the factor. False if a factor is in fewer than two.
  bool Set(std::vector<int64_t> extent, const std::vector<int64_t> (&stride)[3]) {
    std::vector<int> batch, m, n, k;
    for (int f = 0; f < static_cast<int>(extent.size()); ++f) {
      const bool a = stride[0][f] != 0, b = stride[1][f] != 0, y = stride[2][f] != 0;
      if (extent[f] == 1) continue;
      if (a + b + y < 2) return false;
      (a && b && y ? batch : !y ? k : a ? m : n).push_back(f);
    }
    a_batch_ = OffsetsOf(batch, extent, stride[0]);
    a_m_ = OffsetsOf(m, extent, stride[0]);
    a_k_ = OffsetsOf(k, extent, stride[0]);
    b_batch_ = OffsetsOf(batch, extent, stride[1]);
    b_k_ = OffsetsOf(k, extent, stride[1]);
    b_n_ = OffsetsOf(n, extent, stride[1]);
    y_batch_ = OffsetsOf(batch, extent, stride[2]);
    y_m_ = OffsetsOf(m, extent, stride[2]);
    y_n_ = OffsetsOf(n, extent, stride[2]);
    return true;
  }
  void Run(const double* a, const double* b, double* y, bool accumulate) {
    const size_t m = a_m_.size(), n = b_n_.size(), k = a_k_.size();
    pa_.resize(m * k), pb_.resize(k * n), py_.resize(m * n);
    for (size_t i = 0; i < a_batch_.size(); ++i) {
      Pack(a + a_batch_[i], a_m_, a_k_, pa_.data());
      Pack(b + b_batch_[i], b_k_, b_n_, pb_.data());
      Product(false, false, m, n, k, pa_.data(), pb_.data(), false, py_.data());
      double* to = y + y_batch_[i];
      for (size_t r = 0; r < m; ++r) {
        for (size_t c = 0; c < n; ++c) {
          double& v = to[y_m_[r] + y_n_[c]];
          v = accumulate ? v + py_[r * n + c] : py_[r * n + c];
        }
      }
    }
  }

 private:
  static void Pack(const double* from, const Offsets& rows, const Offsets& columns, double* to) {
    for (const int64_t r : rows) {
      for (const int64_t c : columns) *to++ = from[r + c];
    }
  }
  Offsets a_batch_, a_m_, a_k_, b_batch_, b_k_, b_n_, y_batch_, y_m_, y_n_;
  std::vector<double> pa_, pb_, py_;
};

// Ragged terms are contracted cell by cell: the factors before the ragged one have one index each there.
bool Contract(KernelContext& c) {
  const ShardingRule& rule = *c.rule;
  if (c.in.size() != 2) return false;
  const Tensor* tensors[3] = {&c.in[0], &c.in[1], &c.out[0]};
  const FactorTerm* terms[3] = {&rule.operands[0], &rule.operands[1], &rule.results[0]};
  const Tensor* ragged = nullptr;
  std::vector<int> cell_factors;
  std::vector<int64_t> stride[3], cell_stride[3], rows(3, 0);
  int ragged_factor = -1;
  for (int t = 0; t < 3; ++t) {
    const TermStrides s = StridesOf(*terms[t], c.extent, tensors[t]->ragged);
    stride[t].assign(s.element.begin(), s.element.end());
    cell_stride[t].assign(s.cell.begin(), s.cell.end());
    rows[t] = s.row_elements;
    if (!tensors[t]->is_ragged() || ragged != nullptr) continue;
    ragged = tensors[t];
    ragged_factor = s.ragged_factor;
    for (int d = 0; d < ragged->ragged; ++d) {
      for (const FactorId f : (*terms[t])[d]) cell_factors.push_back(f);
    }
  }
  Contraction contraction;
  std::vector<int64_t> extent = c.extent;
  if (ragged == nullptr) {
    if (!contraction.Set(extent, stride)) return false;
    contraction.Run(c.in[0].As<double>(), c.in[1].As<double>(), c.out[0].As<double>(), false);
    return true;
  }
  Offsets base[3];  // of each cell, in dense terms
  for (int t = 0; t < 3; ++t) {
    if (tensors[t]->is_ragged()) {
      if (tensors[t]->cells != ragged->cells) return false;
      stride[t][ragged_factor] = rows[t];
    } else {
      base[t] = OffsetsOf(cell_factors, c.extent, stride[t]);
    }
  }
  for (const int f : cell_factors) extent[f] = 1;
  const bool dense = !c.out[0].is_ragged();
  extent[ragged_factor] = 2;  // any: are the factors those of a contraction?
  if (!contraction.Set(extent, stride)) return false;
  if (dense) std::fill_n(c.out[0].As<double>(), c.out[0].elements(), 0.0);
  int64_t start = 0;
  for (int64_t cell = 0; cell < ragged->cells; ++cell) {
    const int64_t n = ragged->sizes[cell];
    if (n == 0) continue;
    extent[ragged_factor] = n;
    contraction.Set(extent, stride);
    double* data[3];
    for (int t = 0; t < 3; ++t) {
      data[t] = tensors[t]->As<double>() + (tensors[t]->is_ragged() ? start * rows[t] : base[t][cell]);
    }
    contraction.Run(data[0], data[1], data[2], dense);
    start += n;
  }
  return true;
}

absl::Status Multiply(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  return Contract(c) ? absl::OkStatus() : ReduceProducts<double>(c, Reduce::kSum);
}

absl::Status Einsum(KernelContext& c) {
  return RoundsOperands(*c.node) ? RunOnRounded<double>(c, &Multiply) : Multiply(c);
}

// One head of one sequence at a time: q [s, d], k and v [t, d], the scores [s, t] whole. Blocks of a sequence
// that do not see one another count as samples of their own; only positions are told apart.
struct Heads {
  explicit Heads(const KernelContext& c)
      : blocks(c.ExtentOr("r", 1)),
        b(c.Extent("b") * blocks),
        s(c.Extent("s")),
        t(c.Extent("t")),
        d(c.Extent("d")),
        kv(c.Extent("k")),
        per_kv(c.Extent("g")),
        q_position(c.in[3].As<int32_t>()),
        k_position(c.in[4].As<int32_t>()),
        scale(1 / std::sqrt(static_cast<double>(d))) {}
  bool Sees(int64_t ib, int64_t i, int64_t j) const {
    return k_position[ib % blocks * t + j] <= q_position[ib % blocks * s + i];
  }
  // f(batch, head of q, head of k and v)
  template <typename F>
  void ForEach(F f) const {
    for (int64_t ib = 0; ib < b; ++ib) {
      for (int64_t head = 0; head < kv * per_kv; ++head) f(ib, head, head / per_kv);
    }
  }
  std::vector<double> Read(const Tensor& x, int64_t ib, int64_t head, int64_t length, int64_t heads) const {
    std::vector<double> out(length * d);
    for (int64_t i = 0; i < length; ++i) {
      std::copy_n(x.As<double>() + ((ib * length + i) * heads + head) * d, d, out.data() + i * d);
    }
    return out;
  }
  void Add(const std::vector<double>& x, int64_t ib, int64_t head, int64_t length, int64_t heads,
           const Tensor& to) const {
    for (int64_t i = 0; i < length; ++i) {
      double* row = to.As<double>() + ((ib * length + i) * heads + head) * d;
      for (int64_t j = 0; j < d; ++j) row[j] += x[i * d + j];
    }
  }
  int64_t blocks, b, s, t, d, kv, per_kv;
  const int32_t *q_position, *k_position;
  double scale;
};

absl::Status Attention(KernelContext& c) {
  const Heads h(c);
  const int64_t heads = h.kv * h.per_kv;
  std::fill_n(c.out[0].As<double>(), c.out[0].elements(), 0.0);
  std::vector<double> p(h.s * h.t), o(h.s * h.d);
  h.ForEach([&](int64_t ib, int64_t head, int64_t kv_head) {
    const std::vector<double> q = h.Read(c.in[0], ib, head, h.s, heads),
                              k = h.Read(c.in[1], ib, kv_head, h.t, h.kv),
                              v = h.Read(c.in[2], ib, kv_head, h.t, h.kv);
    Product(false, true, h.s, h.t, h.d, q.data(), k.data(), false, p.data());
    for (int64_t i = 0; i < h.s; ++i) {
      double* row = p.data() + i * h.t;
      double max = -1e30, sum = 0;
      for (int64_t j = 0; j < h.t; ++j) {
        row[j] = h.Sees(ib, i, j) ? h.scale * row[j] : -1e30;
        max = std::max(max, row[j]);
      }
      for (int64_t j = 0; j < h.t; ++j) {
        row[j] = h.Sees(ib, i, j) ? std::exp(row[j] - max) : 0;
        sum += row[j];
      }
      for (int64_t j = 0; j < h.t; ++j) row[j] = sum != 0 ? row[j] / sum : 0;
      c.out[1].As<double>()[(ib * h.s + i) * heads + head] = sum != 0 ? max + std::log(sum) : -1e30;
    }
    Product(false, false, h.s, h.d, h.t, p.data(), v.data(), false, o.data());
    h.Add(o, ib, head, h.s, heads, c.out[0]);
  });
  return absl::OkStatus();
}

absl::Status AttentionGrad(KernelContext& c) {
  const Heads h(c);
  const int64_t heads = h.kv * h.per_kv;
  for (Tensor& t : c.out) std::fill_n(t.As<double>(), t.elements(), 0.0);
  std::vector<double> p(h.s * h.t), dp(h.s * h.t), dq(h.s * h.d), dk(h.t * h.d), dv(h.t * h.d);
  h.ForEach([&](int64_t ib, int64_t head, int64_t kv_head) {
    const std::vector<double> q = h.Read(c.in[0], ib, head, h.s, heads),
                              k = h.Read(c.in[1], ib, kv_head, h.t, h.kv),
                              v = h.Read(c.in[2], ib, kv_head, h.t, h.kv),
                              o = h.Read(c.in[5], ib, head, h.s, heads),
                              dy = h.Read(c.in[7], ib, head, h.s, heads);
    Product(false, true, h.s, h.t, h.d, q.data(), k.data(), false, p.data());
    Product(false, true, h.s, h.t, h.d, dy.data(), v.data(), false, dp.data());
    for (int64_t i = 0; i < h.s; ++i) {
      const double lse = c.in[6].As<double>()[(ib * h.s + i) * heads + head];
      double delta = 0;  // the sum over keys of p dp
      for (int64_t j = 0; j < h.d; ++j) delta += dy[i * h.d + j] * o[i * h.d + j];
      for (int64_t j = 0; j < h.t; ++j) {
        double &pij = p[i * h.t + j], &ds = dp[i * h.t + j];
        pij = h.Sees(ib, i, j) ? std::exp(h.scale * pij - lse) : 0;
        ds = h.Sees(ib, i, j) ? pij * (ds - delta) * h.scale : 0;
      }
    }
    Product(false, false, h.s, h.d, h.t, dp.data(), k.data(), false, dq.data());
    Product(true, false, h.t, h.d, h.s, dp.data(), q.data(), false, dk.data());
    Product(true, false, h.t, h.d, h.s, p.data(), dy.data(), false, dv.data());
    h.Add(dq, ib, head, h.s, heads, c.out[0]);
    h.Add(dk, ib, kv_head, h.t, h.kv, c.out[1]);
    h.Add(dv, ib, kv_head, h.t, h.kv, c.out[2]);
  });
  return absl::OkStatus();
}

// Logits of some tokens at a time, all words.
struct Logits {
  explicit Logits(const KernelContext& c)
      : tokens(c.Extent("b") * c.Extent("s")),
        h(c.Extent("h")),
        u(c.Extent("u")),
        w(c.Extent("w")),
        v0(c.Offset("u") * w),
        vocab(c.node->Int("vocab")),
        x(c.in[0].As<double>()),
        weight(c.in[1].As<double>()),
        labels(c.in[2].As<int32_t>()) {}
  // f(first token, tokens, logits [tokens, u w])
  template <typename F>
  void ForEachPart(F f) const {
    constexpr int64_t kTokens = 256;
    std::vector<double> logits(std::min(kTokens, tokens) * u * w);
    for (int64_t t = 0; t < tokens; t += kTokens) {
      const int64_t n = std::min(kTokens, tokens - t);
      Product(false, true, n, u * w, h, x + t * h, weight, false, logits.data());
      f(t, n, logits.data());
    }
  }
  bool Exists(int64_t row) const { return v0 + row < vocab; }
  int64_t tokens, h, u, w, v0, vocab;
  const double *x, *weight;
  const int32_t* labels;
};

absl::Status HeadStats(KernelContext& c) {
  const Logits head(c);
  double *maxima = c.out[0].As<double>(), *sums = c.out[1].As<double>(), *chosen = c.out[2].As<double>();
  head.ForEachPart([&](int64_t first, int64_t n, const double* logits) {
    for (int64_t i = 0; i < n; ++i) {
      const double* of = logits + i * head.u * head.w;
      const int64_t token = first + i, label = head.labels[token] - head.v0;
      const bool here = label >= 0 && label < head.u * head.w && head.Exists(label);
      chosen[token] = here ? of[label] : 0;
      for (int64_t u = 0; u < head.u; ++u) {
        double max = -1e30, sum = 0;
        for (int64_t row = u * head.w; row < (u + 1) * head.w; ++row) {
          if (head.Exists(row)) max = Larger(max, of[row]);
        }
        for (int64_t row = u * head.w; row < (u + 1) * head.w; ++row) {
          if (head.Exists(row)) sum += std::exp(of[row] - max);
        }
        maxima[token * head.u + u] = max;
        sums[token * head.u + u] = sum;
      }
    }
  });
  return absl::OkStatus();
}

absl::Status HeadStatsGrad(KernelContext& c) {
  const Logits head(c);
  const int64_t rows = head.u * head.w;
  const double *max = c.in[3].As<double>(), *dsum = c.in[4].As<double>(), *dlabel = c.in[5].As<double>();
  double *dx = c.out[0].As<double>(), *dweight = c.out[1].As<double>();
  std::fill_n(dweight, c.out[1].elements(), 0.0);
  head.ForEachPart([&](int64_t first, int64_t n, double* logits) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t token = first + i, label = head.labels[token] - head.v0;
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t u = token * head.u + row / head.w;
        double& v = logits[i * rows + row];
        v = head.Exists(row) ? dsum[u] * std::exp(v - max[u]) + (row == label ? dlabel[token] : 0) : 0;
      }
    }
    Product(false, false, n, head.h, rows, logits, head.weight, false, dx + first * head.h);
    Product(true, false, rows, head.h, n, logits, head.x + first * head.h, true, dweight);
  });
  return absl::OkStatus();
}

}  // namespace

void RegisterBlasKernels(KernelRegistry& r) {
  auto add = [&](const char* op, KernelFn fn) { r.Add({op, Backend::kBlas, DType::kF64, fn}); };
  add("math.einsum", &Einsum);
  add("nn.attention", &Attention);
  add("nn.attention_grad", &AttentionGrad);
  add("nn.head_stats", &HeadStats);
  add("nn.head_stats_grad", &HeadStatsGrad);
  KernelRegistry reference;
  RegisterReferenceKernels(reference);
  for (const Kernel* k : reference.All()) {
    if (r.Find(k->op, Backend::kBlas, k->dtype) != nullptr) continue;
    Kernel same = *k;
    same.backend = Backend::kBlas;
    r.Add(same);
  }
}

}  // namespace moe::kernels
