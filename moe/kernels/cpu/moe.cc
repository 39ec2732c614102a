#include <algorithm>
#include <cstring>

#include "moe/kernels/cpu/families.h"
#include "moe/kernels/cpu/simd.h"
#include "moe/kernels/dispatched.h"
#include "moe/kernels/expert_parts.h"
#include "moe/kernels/larger.h"
#include "moe/kernels/loops.h"

namespace moe::kernels {
namespace {

// Starts of the cells of a ragged value.
int64_t StartsWorkspace(const Node&, const ShardingRule& rule, absl::Span<const int64_t> extent,
                        absl::Span<const Tensor>, absl::Span<const Tensor>) {
  return extent[rule.Find("e")] * extent[rule.Find("b")] * extent[rule.Find("c")] * sizeof(int64_t);
}

// f(choice, token, row) for the choices that have a row here, in order of token, then k.
template <typename F>
void ForEachChoice(const KernelContext& c, const Tensor& expert, const Tensor& slot, const Dispatched& d,
                   F f) {
  const int64_t k = c.Extent("k"), t = c.Extent("t"), groups = c.Extent("b") * c.Extent("c");
  const int32_t *experts = expert.As<int32_t>(), *slots = slot.As<int32_t>();
  int64_t choice = 0;
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t token = group * t; token < (group + 1) * t; ++token) {
      for (int64_t j = 0; j < k; ++j, ++choice) {
        const int64_t row = d.Row(experts[choice], group, slots[choice]);
        if (row >= 0) f(choice, token, row);
      }
    }
  }
}

// Rows without a choice stay zero; packed ragged rows have one each.
template <typename T>
void ZeroEmptySlots(const Dispatched& d, int64_t h, Tensor& out) {
  if (!out.is_ragged()) std::fill_n(out.As<T>(), d.rows() * h, T(0));
}

template <typename T>
absl::Status Dispatch(KernelContext& c) {
  RETURN_IF_ERROR(SizeFromChoices(c, c.in[1], c.in[2], c.out[0]));
  const Dispatched d(c, c.out[0], static_cast<int64_t*>(c.workspace));
  const int64_t h = c.Extent("h");
  const T* x = c.in[0].As<T>();
  T* out = c.out[0].As<T>();
  ZeroEmptySlots<T>(d, h, c.out[0]);
  ForEachChoice(c, c.in[1], c.in[2], d, [&](int64_t, int64_t token, int64_t row) {
    std::memcpy(out + row * h, x + token * h, h * sizeof(T));
  });
  return absl::OkStatus();
}

template <typename T>
absl::Status Undispatch(KernelContext& c) {
  const Dispatched d(c, c.in[0], static_cast<int64_t*>(c.workspace));
  const int64_t h = c.Extent("h");
  T* x = c.out[0].As<T>();
  std::fill_n(x, c.out[0].elements(), T(0));
  ForEachChoice(c, c.in[1], c.in[2], d, [&](int64_t, int64_t token, int64_t row) {
    Simd<T>::Get().add(x + token * h, c.in[0].As<T>() + row * h, x + token * h, h);
  });
  return absl::OkStatus();
}

template <typename T>
absl::Status Combine(KernelContext& c) {
  const Dispatched d(c, c.in[0], static_cast<int64_t*>(c.workspace));
  const int64_t h = c.Extent("h");
  const T* p = c.in[1].As<T>();
  T* y = c.out[0].As<T>();
  std::fill_n(y, c.out[0].elements(), T(0));
  ForEachChoice(c, c.in[2], c.in[3], d, [&](int64_t choice, int64_t token, int64_t row) {
    Simd<T>::Get().axpy(p[choice], c.in[0].As<T>() + row * h, y + token * h, h);
  });
  return absl::OkStatus();
}

template <typename T>
absl::Status CombineDo(KernelContext& c) {
  RETURN_IF_ERROR(SizeFromChoices(c, c.in[2], c.in[3], c.out[0]));
  const Dispatched d(c, c.out[0], static_cast<int64_t*>(c.workspace));
  const int64_t h = c.Extent("h");
  const T* p = c.in[1].As<T>();
  T* out = c.out[0].As<T>();
  ZeroEmptySlots<T>(d, h, c.out[0]);
  ForEachChoice(c, c.in[2], c.in[3], d, [&](int64_t choice, int64_t token, int64_t row) {
    Simd<T>::Get().scale(c.in[0].As<T>() + token * h, p[choice], out + row * h, h);
  });
  return absl::OkStatus();
}

template <typename T>
absl::Status CombineDp(KernelContext& c) {
  const Dispatched d(c, c.in[0], static_cast<int64_t*>(c.workspace));
  const int64_t h = c.Extent("h");
  T* dp = c.out[0].As<T>();
  std::fill_n(dp, c.out[0].elements(), T(0));
  ForEachChoice(c, c.in[2], c.in[3], d, [&](int64_t choice, int64_t token, int64_t row) {
    dp[choice] = Simd<T>::Get().dot(c.in[0].As<T>() + row * h, c.in[1].As<T>() + token * h, h);
  });
  return absl::OkStatus();
}

// The number of choices per expert so far.
int64_t SlotsWorkspace(const Node& n, const ShardingRule&, absl::Span<const int64_t>,
                       absl::Span<const Tensor>, absl::Span<const Tensor>) {
  return n.Int("experts") * sizeof(int32_t);
}

absl::Status Slots(KernelContext& c) {
  const int64_t choices = c.Extent("t") * c.Extent("k"), groups = c.Extent("b") * c.Extent("c");
  const int64_t capacity = c.node->Int("capacity"), experts = c.node->Int("experts");
  const bool dropless = c.node->BoolOr("dropless", false);
  int32_t* count = static_cast<int32_t*>(c.workspace);
  for (int64_t g = 0; g < groups; ++g) {
    std::fill(count, count + experts, 0);
    for (int64_t i = g * choices; i < (g + 1) * choices; ++i) {
      const int32_t e = c.in[0].As<int32_t>()[i];
      const int32_t slot = e >= 0 && e < experts ? count[e]++ : -1;
      c.out[0].As<int32_t>()[i] = dropless || slot < capacity ? slot : -1;
    }
  }
  return absl::OkStatus();
}

// Per expert slot: the choices it has in a group, and the slots of each expert, one list after the other.
int64_t ReplicasWorkspace(const Node&, const ShardingRule& rule, absl::Span<const int64_t> extent,
                          absl::Span<const Tensor>, absl::Span<const Tensor>) {
  return (3 * extent[rule.Find("w")] + 1) * sizeof(int32_t);
}

absl::Status ChooseReplicas(KernelContext& c) {
  const int64_t k = c.Extent("k"), t = c.Extent("t"), groups = c.Extent("b") * c.Extent("c");
  const int64_t local = c.Extent("c"), all_groups = c.global_extent[c.rule->Find("c")], slots = c.Extent("w");
  const int32_t *expert = c.in[0].As<int32_t>(), *slot = c.in[1].As<int32_t>(),
                *table = c.in[2].As<int32_t>();
  int32_t *expert_slot = c.out[0].As<int32_t>(), *new_slot = c.out[1].As<int32_t>();
  // No expert has a higher number than there are slots: each has at least one.
  int32_t *count = static_cast<int32_t*>(c.workspace), *start = count + slots, *replicas = start + slots + 1;
  const auto held = [&](int64_t w) { return table[w] >= 0 && table[w] < slots; };
  std::fill_n(start, slots + 1, 0);
  for (int64_t w = 0; w < slots; ++w) {
    if (held(w)) ++start[table[w] + 1];
  }
  for (int64_t e = 0; e < slots; ++e) start[e + 1] += start[e];
  std::copy_n(start, slots, count);
  for (int64_t w = 0; w < slots; ++w) {
    if (held(w)) replicas[count[table[w]]++] = static_cast<int32_t>(w);
  }
  for (int64_t g = 0; g < groups; ++g) {
    std::fill_n(count, slots, 0);
    const int64_t group = (c.Offset("b") + g / local) * all_groups + c.Offset("c") + g % local;
    for (int64_t i = g * t * k; i < (g + 1) * t * k; ++i) {
      const int32_t e = expert[i];
      const int64_t n = e >= 0 && e < slots ? start[e + 1] - start[e] : 0;
      expert_slot[i] = n == 0 ? -1 : replicas[start[e] + (group * t + i / k % t) % n];
      new_slot[i] = n == 0 || slot[i] < 0 ? -1 : count[expert_slot[i]]++;
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status SumReplicas(KernelContext& c) {
  const int64_t experts = c.Extent("e"), e0 = c.Offset("e"), row = c.Extent("f") * c.Extent("h");
  const int32_t* table = c.in[1].As<int32_t>() + c.Offset("q");
  T* y = c.out[0].As<T>();
  std::fill_n(y, experts * row, T(0));
  for (int64_t q = 0; q < c.Extent("q"); ++q) {
    const int64_t e = table[q] - e0;
    if (table[q] < 0 || e < 0 || e >= experts) continue;
    Simd<T>::Get().add(y + e * row, c.in[0].As<T>() + q * row, y + e * row, row);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status CopyToReplicas(KernelContext& c) {
  const int64_t experts = c.Extent("e"), e0 = c.Offset("e"), row = c.Extent("f") * c.Extent("h");
  const int32_t* table = c.in[1].As<int32_t>() + c.Offset("q");
  for (int64_t q = 0; q < c.Extent("q"); ++q) {
    const int64_t e = table[q] - e0;
    T* y = c.out[0].As<T>() + q * row;
    if (table[q] < 0 || e < 0 || e >= experts) {
      std::fill_n(y, row, T(0));
    } else {
      std::memcpy(y, c.in[0].As<T>() + e * row, row * sizeof(T));
    }
  }
  return absl::OkStatus();
}

// k is small: each choice is one pass over the probabilities that are left, below the last one taken.
template <typename T>
absl::Status TopK(KernelContext& c) {
  const int64_t e = c.Extent("e"), k = c.Extent("k"), tokens = c.Extent("b") * c.Extent("c") * c.Extent("t");
  const T* mask = c.in[1].As<T>();
  for (int64_t i = 0; i < tokens; ++i) {
    const T* p = c.in[0].As<T>() + i * e;
    T* top = c.out[0].As<T>() + i * k;
    int32_t* expert = c.out[1].As<int32_t>() + i * k;
    for (int64_t j = 0; j < k; ++j) {
      int64_t best = -1;
      for (int64_t n = 0; n < e; ++n) {
        // After the last one in falling order, ties by rising index.
        const bool left =
            j == 0 || IsLarger(top[j - 1], p[n]) || (IsSame(p[n], top[j - 1]) && n > expert[j - 1]);
        if (left && (best < 0 || IsLarger(p[n], p[best]))) best = n;
      }
      top[j] = best >= 0 ? p[best] : T(0);
      expert[j] = static_cast<int32_t>(best);
    }
    if (mask[i] == 0) {
      std::fill(top, top + k, T(0));
      std::fill(expert, expert + k, -1);
    }
  }
  return absl::OkStatus();
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  auto add = [&](const char* op, KernelFn fn, WorkspaceFn workspace = nullptr) {
    r.Add({op, Backend::kCpu, dtype, fn, workspace});
  };
  add("moe.combine", &Combine<T>, &StartsWorkspace);
  add("moe.combine_do", &CombineDo<T>, &StartsWorkspace);
  add("moe.combine_dp", &CombineDp<T>, &StartsWorkspace);
  add("moe.copy_to_replicas", &CopyToReplicas<T>);
  add("moe.dispatch", &Dispatch<T>, &StartsWorkspace);
  add("moe.join_experts", &JoinExperts<T>);
  add("moe.split_experts", &SplitExperts<T>);
  add("moe.sum_replicas", &SumReplicas<T>);
  add("moe.top_k", &TopK<T>);
  add("moe.undispatch", &Undispatch<T>, &StartsWorkspace);
}

}  // namespace

void RegisterCpuMoe(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
  r.Add({"moe.choose_replicas", Backend::kCpu, DType::kS32, &ChooseReplicas, &ReplicasWorkspace});
  for (const DType half : {DType::kBF16, DType::kF16}) {  // rows are copied, whatever they hold
    r.Add({"moe.dispatch", Backend::kCpu, half, &Dispatch<uint16_t>, &StartsWorkspace});
  }
  r.Add({"moe.slots", Backend::kCpu, DType::kS32, &Slots, &SlotsWorkspace});
}

}  // namespace moe::kernels
