#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/numbers.h"
#include "moe/ir/ops/fused_program.h"
#include "moe/ir/ops/multi_adamw.h"
#include "moe/kernels/larger.h"
#include "moe/kernels/loops.h"
#include "moe/kernels/reference/families.h"
#include "moe/kernels/update_check.h"

namespace moe::kernels {
namespace {

template <typename T>
absl::Status AddRmsNorm(KernelContext& c) {
  const int64_t h = c.Extent("h"), rows = c.Extent("b") * c.Extent("s");
  const double eps = c.node->Float("eps");
  const T* w = c.in[2].As<T>();
  for (int64_t i = 0; i < rows; ++i) {
    T* sum = c.out[0].As<T>() + i * h;
    double squares = 0;
    for (int64_t j = 0; j < h; ++j) {
      sum[j] = static_cast<T>(static_cast<double>(c.in[0].As<T>()[i * h + j]) + c.in[1].As<T>()[i * h + j]);
      squares += static_cast<double>(sum[j]) * sum[j];
    }
    const double r = 1 / std::sqrt(squares / h + eps);
    for (int64_t j = 0; j < h; ++j) c.out[1].As<T>()[i * h + j] = static_cast<T>(sum[j] * r * w[j]);
  }
  return absl::OkStatus();
}

// moe.router, and without a fourth result moe.softmax_top_k.
template <typename T>
absl::Status Router(KernelContext& c) {
  const int64_t e = c.Extent("e"), k = c.Extent("k"), tokens = c.Extent("b") * c.Extent("c") * c.Extent("t");
  const T *logits = c.in[0].As<T>(), *mask = c.in[1].As<T>();
  T *probability = c.out[0].As<T>(), *top = c.out[1].As<T>();
  int32_t* expert = c.out[2].As<int32_t>();
  int32_t* count = c.out.size() > 3 ? c.out[3].As<int32_t>() : nullptr;
  if (count != nullptr) std::fill(count, count + e, 0);
  std::vector<bool> taken;
  for (int64_t i = 0; i < tokens; ++i) {
    const T* x = logits + i * e;
    T* p = probability + i * e;
    double max = -1e30, sum = 0;
    for (int64_t j = 0; j < e; ++j) max = std::max<double>(max, x[j]);
    for (int64_t j = 0; j < e; ++j) sum += std::exp(x[j] - max);
    for (int64_t j = 0; j < e; ++j) p[j] = static_cast<T>(std::exp(x[j] - max) / sum);
    taken.assign(e, false);
    for (int64_t j = 0; j < k; ++j) {
      int64_t best = -1;
      for (int64_t n = 0; n < e; ++n) {
        if (!taken[n] && (best < 0 || IsLarger(p[n], p[best]))) best = n;
      }
      if (best >= 0) taken[best] = true;
      const bool routed = best >= 0 && mask[i] != 0;
      top[i * k + j] = routed ? p[best] : T(0);
      expert[i * k + j] = routed ? static_cast<int32_t>(best) : -1;
      if (routed && count != nullptr) ++count[best];
    }
  }
  return absl::OkStatus();
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double Evaluate(const FusedInstruction& in, double a, double b) {
  switch (in.op) {
    case FusedOp::kAdd:
      return a + b;
    case FusedOp::kMul:
      return a * b;
    case FusedOp::kScale:
      return a * in.constant;
    case FusedOp::kSilu:
      return a * Sigmoid(a);
    case FusedOp::kSiluGrad:
      return b * Sigmoid(a) * (1 + a * (1 - Sigmoid(a)));
    case FusedOp::kLog:
      return std::log(a);
    case FusedOp::kReciprocal:
      return 1 / a;
    case FusedOp::kAtLeast:
      return std::max(a, in.constant);
  }
  return 0;
}

// Every instruction rounds to T, as the nodes that it stands for would.
template <typename T>
absl::Status Fused(KernelContext& c) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  ASSIGN_OR_RETURN(const FusedProgram program,
                   ParseFusedProgram(c.node->Strings("program"), static_cast<int>(c.in.size())));
  std::vector<Elements<T>> x(c.in.begin(), c.in.end());
  std::vector<T> t(program.size());
  for (int64_t i = 0; i < c.out[0].elements(); ++i) {
    const auto value = [&](int operand) -> double { return operand >= 0 ? x[operand][i] : t[-1 - operand]; };
    for (size_t j = 0; j < program.size(); ++j) {
      t[j] = static_cast<T>(Evaluate(program[j], value(program[j].a), value(program[j].b)));
    }
    c.out[0].As<T>()[i] = t.back();
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status MultiAdamW(KernelContext& c) {
  const double beta1 = c.node->Float("beta1"), beta2 = c.node->Float("beta2"), eps = c.node->Float("eps");
  const auto scalar = [&](int i) { return static_cast<double>(*c.in[i].As<T>()); };
  const double factor = scalar(0), finite = scalar(1), rate = scalar(2), bias1 = scalar(3), bias2 = scalar(4);
  bool fits = true;
  for (int i = 0; i < MultiAdamWTensors(*c.node); ++i) {
    double decay = 0;
    if (!absl::SimpleAtod(c.node->Strings("weight_decay")[i], &decay))
      return absl::InternalError("weight_decay");
    const Tensor* in = &c.in[kMultiAdamWScalars + 4 * i];
    Tensor* out = &c.out[3 * i];
    const int copy = MultiAdamWCopy(*c.node, i);
    const double largest =
        std::min(LargestOf(out[0].dtype), copy < 0 ? INFINITY : LargestOf(c.out[copy].dtype));
    for (int64_t j = 0; j < out[0].elements(); ++j) {
      const double p = in[0].As<T>()[j], m = in[2].As<T>()[j], v = in[3].As<T>()[j];
      const double g = factor * in[1].As<T>()[j];
      const double m1 = finite == 0 ? m : beta1 * m + (1 - beta1) * g;
      const double v1 = finite == 0 ? v : beta2 * v + (1 - beta2) * g * g;
      const double step = finite == 0 ? 0 : rate * (m1 / bias1 / (std::sqrt(v1 / bias2) + eps) + decay * p);
      if (finite != 0 && !(std::abs(p - step) <= largest && v1 <= std::numeric_limits<T>::max())) {
        fits = fits && m1 == 0 && p == 0;
        out[0].As<T>()[j] = static_cast<T>(p);
        out[1].As<T>()[j] = static_cast<T>(m);
        out[2].As<T>()[j] = static_cast<T>(v);
        continue;
      }
      out[0].As<T>()[j] = static_cast<T>(p - step);
      out[1].As<T>()[j] = static_cast<T>(m1);
      out[2].As<T>()[j] = static_cast<T>(v1);
    }
    if (copy >= 0) std::copy_n(out[0].As<T>(), out[0].elements(), c.out[copy].As<T>());
  }
  return fits ? absl::OkStatus() : UpdateNotFinite(rate);
}

template <typename T>
void RegisterFloat(KernelRegistry& r, DType dtype) {
  auto add = [&](const char* op, KernelFn fn) { r.Add({op, Backend::kReference, dtype, fn}); };
  add("math.fused", &Fused<T>);
  add("moe.router", &Router<T>);
  add("moe.softmax_top_k", &Router<T>);
  add("nn.add_rms_norm", &AddRmsNorm<T>);
  add("optim.multi_adamw", &MultiAdamW<T>);
}

}  // namespace

void RegisterReferenceFused(KernelRegistry& r) {
  RegisterFloat<float>(r, DType::kF32);
  RegisterFloat<double>(r, DType::kF64);
}

}  // namespace moe::kernels
