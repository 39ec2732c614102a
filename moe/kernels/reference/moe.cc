#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/kernels/dispatched.h"
#include "moe/kernels/expert_parts.h"
#include "moe/kernels/larger.h"
#include "moe/kernels/loops.h"
#include "moe/kernels/reference/families.h"

namespace moe::kernels {
namespace {

int64_t Tokens(const KernelContext& c) { return c.Extent("b") * c.Extent("c") * c.Extent("t"); }

template <typename T>
absl::Status TopK(KernelContext& c) {
  const int64_t e = c.Extent("e"), k = c.Extent("k");
  const T *p = c.in[0].As<T>(), *mask = c.in[1].As<T>();
  T* top = c.out[0].As<T>();
  int32_t* expert = c.out[1].As<int32_t>();
  for (int64_t i = 0; i < Tokens(c); ++i) {
    std::vector<bool> taken(e, false);
    for (int64_t j = 0; j < k; ++j) {
      int64_t best = -1;
      for (int64_t n = 0; n < e; ++n) {
        if (!taken[n] && (best < 0 || IsLarger(p[i * e + n], p[i * e + best]))) best = n;
      }
      if (best >= 0) taken[best] = true;
      const bool routed = best >= 0 && mask[i] != 0;
      top[i * k + j] = routed ? p[i * e + best] : T(0);
      expert[i * k + j] = routed ? static_cast<int32_t>(best) : -1;
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status TopKGrad(KernelContext& c) {
  const int64_t e = c.Extent("e"), e0 = c.Offset("e"), k = c.Extent("k");
  const int32_t* expert = c.in[0].As<int32_t>();
  const T* dtop = c.in[1].As<T>();
  for (int64_t i = 0; i < Tokens(c); ++i) {
    for (int64_t n = 0; n < e; ++n) {
      double sum = 0;
      for (int64_t j = 0; j < k; ++j) {
        if (expert[i * k + j] == e0 + n) sum += dtop[i * k + j];
      }
      c.out[0].As<T>()[i * e + n] = static_cast<T>(sum);
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status Normalize(KernelContext& c) {
  const int64_t k = c.Extent("k");
  for (int64_t i = 0; i < Tokens(c); ++i) {
    const T* p = c.in[0].As<T>() + i * k;
    double sum = 0;
    for (int64_t j = 0; j < k; ++j) sum += p[j];
    for (int64_t j = 0; j < k; ++j) c.out[0].As<T>()[i * k + j] = static_cast<T>(sum == 0 ? 0 : p[j] / sum);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status NormalizeGrad(KernelContext& c) {
  const int64_t k = c.Extent("k");
  for (int64_t i = 0; i < Tokens(c); ++i) {
    const T *p = c.in[0].As<T>() + i * k, *dq = c.in[1].As<T>() + i * k;
    double sum = 0, dot = 0;
    for (int64_t j = 0; j < k; ++j) sum += p[j];
    for (int64_t j = 0; j < k; ++j) dot += sum == 0 ? 0 : static_cast<double>(dq[j]) * p[j] / sum;
    for (int64_t j = 0; j < k; ++j)
      c.out[0].As<T>()[i * k + j] = static_cast<T>(sum == 0 ? 0 : (dq[j] - dot) / sum);
  }
  return absl::OkStatus();
}

absl::Status Slots(KernelContext& c) {
  const int64_t choices = c.Extent("t") * c.Extent("k"), groups = c.Extent("b") * c.Extent("c");
  const int64_t capacity = c.node->Int("capacity");
  const bool dropless = c.node->BoolOr("dropless", false);
  const int32_t* expert = c.in[0].As<int32_t>();
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t i = 0; i < choices; ++i) {
      const int32_t mine = expert[g * choices + i];
      int64_t slot = 0;
      for (int64_t j = 0; j < i; ++j) slot += expert[g * choices + j] == mine;
      const bool kept = mine >= 0 && (dropless || slot < capacity);
      c.out[0].As<int32_t>()[g * choices + i] = kept ? static_cast<int32_t>(slot) : -1;
    }
  }
  return absl::OkStatus();
}

absl::Status ChooseReplicas(KernelContext& c) {
  const int64_t k = c.Extent("k"), t = c.Extent("t"), groups = c.Extent("b") * c.Extent("c");
  const int64_t all_groups = c.global_extent[c.rule->Find("c")];  // of a sequence
  const int32_t *expert = c.in[0].As<int32_t>(), *slot = c.in[1].As<int32_t>(),
                *table = c.in[2].As<int32_t>();
  int32_t *expert_slot = c.out[0].As<int32_t>(), *new_slot = c.out[1].As<int32_t>();
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t group =
        (c.Offset("b") + g / c.Extent("c")) * all_groups + c.Offset("c") + g % c.Extent("c");
    for (int64_t i = g * t * k; i < (g + 1) * t * k; ++i) {
      std::vector<int32_t> replicas;
      for (int64_t w = 0; w < c.Extent("w"); ++w) {
        if (expert[i] >= 0 && table[w] == expert[i]) replicas.push_back(static_cast<int32_t>(w));
      }
      const int64_t token = group * t + i / k % t;
      expert_slot[i] = replicas.empty() ? -1 : replicas[token % static_cast<int64_t>(replicas.size())];
      new_slot[i] = -1;
      if (slot[i] < 0 || replicas.empty()) continue;
      new_slot[i] = 0;
      for (int64_t j = g * t * k; j < i; ++j)
        new_slot[i] += new_slot[j] >= 0 && expert_slot[j] == expert_slot[i];
    }
  }
  return absl::OkStatus();
}

// The local parts of an expert dim "e" and of a dim of expert slots "q", whose rows are `row` elements long.
struct ReplicaLoop {
  explicit ReplicaLoop(const KernelContext& c)
      : experts(c.Extent("e")),
        e0(c.Offset("e")),
        slots(c.Extent("q")),
        q0(c.Offset("q")),
        row(c.Extent("f") * c.Extent("h")),
        table(c.in[1].As<int32_t>()) {}
  // The local row of the expert that local slot q holds; -1 if it is not here, or none.
  int64_t Expert(int64_t q) const {
    const int64_t e = table[q0 + q] - e0;
    return table[q0 + q] >= 0 && e >= 0 && e < experts ? e : -1;
  }
  const int64_t experts, e0, slots, q0, row;
  const int32_t* table;
};

template <typename T>
absl::Status SumReplicas(KernelContext& c) {
  const ReplicaLoop l(c);
  std::vector<double> sum(l.experts * l.row, 0.0);
  for (int64_t q = 0; q < l.slots; ++q) {
    for (int64_t i = 0; i < l.row && l.Expert(q) >= 0; ++i)
      sum[l.Expert(q) * l.row + i] += c.in[0].As<T>()[q * l.row + i];
  }
  for (size_t i = 0; i < sum.size(); ++i) c.out[0].As<T>()[i] = static_cast<T>(sum[i]);
  return absl::OkStatus();
}

template <typename T>
absl::Status CopyToReplicas(KernelContext& c) {
  const ReplicaLoop l(c);
  for (int64_t q = 0; q < l.slots; ++q) {
    for (int64_t i = 0; i < l.row; ++i) {
      c.out[0].As<T>()[q * l.row + i] = l.Expert(q) < 0 ? T(0) : c.in[0].As<T>()[l.Expert(q) * l.row + i];
    }
  }
  return absl::OkStatus();
}

absl::Status Count(KernelContext& c) {
  const int64_t e = c.Extent("e"), e0 = c.Offset("e"), choices = c.in[0].elements();
  int32_t* count = c.out[0].As<int32_t>();
  std::fill(count, count + c.out[0].elements(), 0);
  const int64_t per_row =
      c.node->BoolOr("per_sequence", false) ? c.Extent("c") * c.Extent("t") * c.Extent("k") : choices;
  for (int64_t i = 0; i < choices; ++i) {
    const int64_t local = c.in[0].As<int32_t>()[i] - e0;
    if (local >= 0 && local < e) ++count[i / per_row * e + local];
  }
  return absl::OkStatus();
}

absl::Status CountKept(KernelContext& c) {
  int32_t kept = 0;
  for (int64_t i = 0; i < c.in[0].elements(); ++i) kept += c.in[0].As<int32_t>()[i] >= 0;
  c.out[0].As<int32_t>()[0] = kept;
  return absl::OkStatus();
}

// The four ops below share their nest: over groups, tokens of a group and choices of a token.
template <typename F>
void ForEachChoice(const KernelContext& c, const Tensor& expert, const Tensor& slot, const Dispatched& d,
                   F f) {
  const int64_t k = c.Extent("k"), t = c.Extent("t");
  for (int64_t i = 0; i < expert.elements(); ++i) {
    const int64_t token = i / k, group = token / t;
    const int64_t row = d.Row(expert.As<int32_t>()[i], group, slot.As<int32_t>()[i]);
    if (row >= 0) f(i, token, row);
  }
}

template <typename T>
absl::Status Dispatch(KernelContext& c) {
  RETURN_IF_ERROR(SizeFromChoices(c, c.in[1], c.in[2], c.out[0]));
  const Dispatched d(c, c.out[0]);
  const int64_t h = c.Extent("h");
  T* out = c.out[0].As<T>();
  std::fill(out, out + d.rows() * h, T(0));
  ForEachChoice(c, c.in[1], c.in[2], d, [&](int64_t, int64_t token, int64_t row) {
    for (int64_t j = 0; j < h; ++j) out[row * h + j] = c.in[0].As<T>()[token * h + j];
  });
  return absl::OkStatus();
}

// Sums over choices of weight(choice) times the row of d, for undispatch and combine.
template <typename T, typename W>
absl::Status SumChoices(KernelContext& c, const Tensor& expert, const Tensor& slot, W weight) {
  const Dispatched d(c, c.in[0]);
  const int64_t h = c.Extent("h");
  std::vector<double> sum(c.out[0].elements(), 0.0);
  ForEachChoice(c, expert, slot, d, [&](int64_t choice, int64_t token, int64_t row) {
    for (int64_t j = 0; j < h; ++j) sum[token * h + j] += weight(choice) * c.in[0].As<T>()[row * h + j];
  });
  for (size_t i = 0; i < sum.size(); ++i) c.out[0].As<T>()[i] = static_cast<T>(sum[i]);
  return absl::OkStatus();
}

template <typename T>
absl::Status Undispatch(KernelContext& c) {
  return SumChoices<T>(c, c.in[1], c.in[2], [](int64_t) { return 1.0; });
}

template <typename T>
absl::Status Combine(KernelContext& c) {
  return SumChoices<T>(c, c.in[2], c.in[3],
                       [&](int64_t choice) { return static_cast<double>(c.in[1].As<T>()[choice]); });
}

template <typename T>
absl::Status CombineDo(KernelContext& c) {
  RETURN_IF_ERROR(SizeFromChoices(c, c.in[2], c.in[3], c.out[0]));
  const Dispatched d(c, c.out[0]);
  const int64_t h = c.Extent("h");
  T* out = c.out[0].As<T>();
  std::fill(out, out + d.rows() * h, T(0));
  ForEachChoice(c, c.in[2], c.in[3], d, [&](int64_t choice, int64_t token, int64_t row) {
    const double p = c.in[1].As<T>()[choice];
    for (int64_t j = 0; j < h; ++j) out[row * h + j] = static_cast<T>(p * c.in[0].As<T>()[token * h + j]);
  });
  return absl::OkStatus();
}

template <typename T>
absl::Status CombineDp(KernelContext& c) {
  const Dispatched d(c, c.in[0]);
  const int64_t h = c.Extent("h");
  T* dp = c.out[0].As<T>();
  std::fill(dp, dp + c.out[0].elements(), T(0));
  ForEachChoice(c, c.in[2], c.in[3], d, [&](int64_t choice, int64_t token, int64_t row) {
    double sum = 0;
    for (int64_t j = 0; j < h; ++j) {
      sum += static_cast<double>(c.in[0].As<T>()[row * h + j]) * c.in[1].As<T>()[token * h + j];
    }
    dp[choice] = static_cast<T>(sum);
  });
  return absl::OkStatus();
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  auto add = [&](const char* op, KernelFn fn) { r.Add({op, Backend::kReference, dtype, fn}); };
  add("moe.combine", &Combine<T>);
  add("moe.combine_do", &CombineDo<T>);
  add("moe.combine_dp", &CombineDp<T>);
  add("moe.copy_to_replicas", &CopyToReplicas<T>);
  add("moe.dispatch", &Dispatch<T>);
  add("moe.normalize", &Normalize<T>);
  add("moe.normalize_grad", &NormalizeGrad<T>);
  add("moe.join_experts", &JoinExperts<T>);
  add("moe.split_experts", &SplitExperts<T>);
  add("moe.sum_replicas", &SumReplicas<T>);
  add("moe.top_k", &TopK<T>);
  add("moe.top_k_grad", &TopKGrad<T>);
  add("moe.undispatch", &Undispatch<T>);
}

}  // namespace

void RegisterReferenceMoe(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
  r.Add({"moe.choose_replicas", Backend::kReference, DType::kS32, &ChooseReplicas});
  r.Add({"moe.count", Backend::kReference, DType::kS32, &Count});
  r.Add({"moe.count_kept", Backend::kReference, DType::kS32, &CountKept});
  r.Add({"moe.slots", Backend::kReference, DType::kS32, &Slots});
}

}  // namespace moe::kernels
