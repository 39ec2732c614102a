#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/numbers.h"
#include "moe/base/status.h"
#include "moe/ir/ops/fused_program.h"
#include "moe/ir/ops/multi_adamw.h"
#include "moe/kernels/cpu/families.h"
#include "moe/kernels/cpu/optim.h"
#include "moe/kernels/cpu/simd.h"
#include "moe/kernels/larger.h"
#include "moe/kernels/loops.h"

namespace moe::kernels {
namespace {

template <typename T>
absl::Status AddRmsNorm(KernelContext& c) {
  const int64_t h = c.Extent("h"), rows = c.Extent("b") * c.Extent("s");
  const double eps = c.node->Float("eps");
  const Simd<T>& simd = Simd<T>::Get();
  constexpr int64_t kRows = 8;  // stay in the nearest cache between the two
  for (int64_t i = 0; i < rows; i += kRows) {
    const int64_t n = std::min(kRows, rows - i);
    T* sum = c.out[0].As<T>() + i * h;
    simd.add(c.in[0].As<T>() + i * h, c.in[1].As<T>() + i * h, sum, n * h);
    simd.rms_norm(sum, c.in[2].As<T>(), eps, c.out[1].As<T>() + i * h, h, n);
  }
  return absl::OkStatus();
}

// The k largest of e <= 64 probabilities in falling order, ties by rising index: a bit per expert that is
// left.
template <typename T>
void SelectFew(const T* p, int64_t e, int64_t k, int32_t* chosen) {
  uint64_t left = e == 64 ? ~uint64_t{0} : (uint64_t{1} << e) - 1;
  for (int64_t j = 0; j < k; ++j) {
    int best = -1;
    for (uint64_t rest = left; rest != 0; rest &= rest - 1) {
      const int n = std::countr_zero(rest);
      if (best < 0 || IsLarger(p[n], p[best])) best = n;
    }
    chosen[j] = best;
    if (best >= 0) left &= ~(uint64_t{1} << best);
  }
}

// The same for any number of experts: each choice is a pass over what comes after the last one.
template <typename T>
void SelectMany(const T* p, int64_t e, int64_t k, int32_t* chosen) {
  for (int64_t j = 0; j < k; ++j) {
    const int32_t last = j > 0 ? chosen[j - 1] : -1;
    int64_t best = -1;
    for (int64_t n = 0; n < e && (j == 0 || last >= 0); ++n) {
      const bool left = j == 0 || IsLarger(p[last], p[n]) || (IsSame(p[n], p[last]) && n > last);
      if (left && (best < 0 || IsLarger(p[n], p[best]))) best = n;
    }
    chosen[j] = static_cast<int32_t>(best);
  }
}

// moe.router, and without a fourth result moe.softmax_top_k. The arithmetic of nn.softmax, which may compute
// the probabilities again in the backward.
template <typename T>
absl::Status Router(KernelContext& c) {
  const int64_t e = c.Extent("e"), k = c.Extent("k"), tokens = c.Extent("b") * c.Extent("c") * c.Extent("t");
  const Simd<T>& simd = Simd<T>::Get();
  const T *logits = c.in[0].As<T>(), *mask = c.in[1].As<T>();
  T *probability = c.out[0].As<T>(), *top = c.out[1].As<T>();
  int32_t* expert = c.out[2].As<int32_t>();
  int32_t* count = c.out.size() > 3 ? c.out[3].As<int32_t>() : nullptr;
  if (count != nullptr) std::fill(count, count + e, 0);
  for (int64_t i = 0; i < tokens; ++i, top += k, expert += k) {
    const T* x = logits + i * e;
    T* p = probability + i * e;
    simd.scale(p, T(1) / simd.exp_sum(x, T(1), simd.max(x, e), p, e), p, e);
    if (mask[i] == 0) {
      std::fill(top, top + k, T(0));
      std::fill(expert, expert + k, -1);
      continue;
    }
    e <= 64 ? SelectFew(p, e, k, expert) : SelectMany(p, e, k, expert);
    for (int64_t j = 0; j < k; ++j) {
      top[j] = expert[j] >= 0 ? p[expert[j]] : T(0);
      if (count != nullptr && expert[j] >= 0) ++count[expert[j]];
    }
  }
  return absl::OkStatus();
}

// Blocks of a chain stay in the nearest cache.
constexpr int64_t kFusedBlock = 512;

template <typename T>
int64_t FusedWorkspace(const Node& n, const ShardingRule&, absl::Span<const int64_t>,
                       absl::Span<const Tensor>, absl::Span<const Tensor>) {
  return (n.Strings("program").size() + 1) * kFusedBlock * sizeof(T);
}

template <typename T>
void RunInstruction(const FusedInstruction& in, const T* a, const T* b, T* y, int64_t n) {
  const Simd<T>& simd = Simd<T>::Get();
  switch (in.op) {
    case FusedOp::kAdd:
      return simd.add(a, b, y, n);
    case FusedOp::kMul:
      return simd.mul(a, b, y, n);
    case FusedOp::kScale:
      return simd.scale(a, static_cast<T>(in.constant), y, n);
    case FusedOp::kSilu:
      return simd.silu(a, y, n);
    case FusedOp::kSiluGrad:
      return simd.silu_grad(a, b, y, n);
    case FusedOp::kLog:
      for (int64_t i = 0; i < n; ++i) y[i] = std::log(a[i]);
      return;
    case FusedOp::kReciprocal:
      for (int64_t i = 0; i < n; ++i) y[i] = T(1) / a[i];
      return;
    case FusedOp::kAtLeast:
      for (int64_t i = 0; i < n; ++i) y[i] = std::max(a[i], static_cast<T>(in.constant));
      return;
  }
}

template <typename T>
absl::Status Fused(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  ASSIGN_OR_RETURN(const FusedProgram program,
                   ParseFusedProgram(c.node->Strings("program"), static_cast<int>(c.in.size())));
  // One block per instruction but the last, which writes the result; and two for scalars spread out.
  T* const blocks = static_cast<T*>(c.workspace);
  T* const spread = blocks + (program.size() - 1) * kFusedBlock;
  const int64_t size = c.out[0].elements();
  for (int64_t start = 0; start < size; start += kFusedBlock) {
    const int64_t n = std::min(kFusedBlock, size - start);
    const auto value = [&](int operand, T* scratch) -> const T* {
      if (operand < 0) return blocks + (-1 - operand) * kFusedBlock;
      const Tensor& x = c.in[operand];
      if (!IsScalar(x)) return x.As<T>() + start;
      std::fill(scratch, scratch + n, *x.As<T>());
      return scratch;
    };
    for (size_t i = 0; i < program.size(); ++i) {
      T* y = i + 1 == program.size() ? c.out[0].As<T>() + start : blocks + i * kFusedBlock;
      const T* a = value(program[i].a, spread);
      const T* b = NumFusedOperands(program[i].op) == 2 ? value(program[i].b, spread + kFusedBlock) : nullptr;
      RunInstruction(program[i], a, b, y, n);
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status MultiAdamW(KernelContext& c) {
  for (int i = 0; i < MultiAdamWTensors(*c.node); ++i) {
    double decay = 0;
    if (!absl::SimpleAtod(c.node->Strings("weight_decay")[i], &decay))
      return absl::InternalError("weight_decay");
    const Tensor* in = &c.in[kMultiAdamWScalars + 4 * i];
    const Tensor* out = &c.out[3 * i];
    const int copy = MultiAdamWCopy(*c.node, i);
    RETURN_IF_ERROR(AdamWTensor<T>(*c.node, decay, {&c.in[0], kMultiAdamWScalars})
                        .Run({&in[0], &in[1], &in[2], &in[3]}, {&out[0], &out[1], &out[2]},
                             copy < 0 ? nullptr : &c.out[copy]));
  }
  return absl::OkStatus();
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  r.Add({"math.fused", Backend::kCpu, dtype, &Fused<T>, &FusedWorkspace<T>});
  r.Add({"moe.router", Backend::kCpu, dtype, &Router<T>});
  r.Add({"moe.softmax_top_k", Backend::kCpu, dtype, &Router<T>});
  r.Add({"optim.multi_adamw", Backend::kCpu, dtype, &MultiAdamW<T>});
  r.Add({"nn.add_rms_norm", Backend::kCpu, dtype, &AddRmsNorm<T>});
}

}  // namespace

void RegisterCpuFused(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
  for (const DType narrow : {DType::kBF16, DType::kF16})
    r.Add({"optim.multi_adamw", Backend::kCpu, narrow, &MultiAdamW<float>});
}

}  // namespace moe::kernels
