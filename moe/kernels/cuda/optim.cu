// The optimizer's step.

#include <algorithm>

#include "absl/strings/numbers.h"
#include "moe/ir/ops/multi_adamw.h"
#include "moe/kernels/cuda/families.h"
#include "moe/kernels/cuda/map.h"
#include "moe/kernels/update_check.h"

namespace moe::kernels {
namespace {

struct ClipOf {
  float max_norm;
  __device__ void operator()(const float (&x)[1], float (&y)[3]) const {
    const float norm = sqrtf(x[0]);
    const bool finite = norm <= 3.402823466e38f;  // false for NaN
    const float factor = max_norm > 0 ? fminf(1.0f, max_norm / (norm + 1e-6f)) : 1.0f;
    y[0] = norm;
    y[1] = finite ? factor : 0.0f;
    y[2] = finite ? 1.0f : 0.0f;
  }
};

absl::Status Clip(KernelContext& c) {
  return Map<1, 3>(c, ClipOf{static_cast<float>(c.node->Float("max_norm"))});
}

struct AdamWTensor {
  Reals p, g, m, v;                 // operands
  Reals new_p, new_m, new_v, copy;  // copy.data: null if there is none
  int64_t elements, first_block, blocks;
  float decay, largest;  // magnitude of p that what holds it can hold
  bool aligned;
};

struct AdamWArgs {
  Reals factor, finite, rate, bias1, bias2;
  float beta1, beta2, rest1, rest2, eps;  // rest: 1 - beta
  int count;
  AdamWTensor tensors[kMaxMultiAdamWTensors];
};

// All tensors in one launch: each has a run of blocks. Adam's moments and the new parameter of an element
// depend on that element alone, so everything may be in place.
__global__ void AdamWKernel(const __grid_constant__ AdamWArgs a) {
  int which = 0;
  while (which + 1 < a.count && blockIdx.x >= a.tensors[which + 1].first_block) ++which;
  const AdamWTensor& t = a.tensors[which];
  const float factor = LoadOne(a.factor, 0), rate = LoadOne(a.rate, 0);
  const float by1 = 1 / LoadOne(a.bias1, 0), by2 = 1 / LoadOne(a.bias2, 0);
  const bool finite = LoadOne(a.finite, 0) != 0;
  const int64_t step = t.blocks * blockDim.x * kChunk;
  for (int64_t at = ((blockIdx.x - t.first_block) * blockDim.x + threadIdx.x) * kChunk; at < t.elements;
       at += step) {
    const int n = ChunkSize(at, t.elements);
    Chunk p, g, m, v;
    if (t.aligned && n == kChunk) {
      const RawChunk raw_p = LoadRaw(t.p, at), raw_g = LoadRaw(t.g, at), raw_m = LoadRaw(t.m, at),
                     raw_v = LoadRaw(t.v, at);
      p = Widen(t.p.storage, raw_p);
      g = Widen(t.g.storage, raw_g);
      m = Widen(t.m.storage, raw_m);
      v = Widen(t.v.storage, raw_v);
    } else {
      p = Load(t.p, at, n, false);
      g = Load(t.g, at, n, false);
      m = Load(t.m, at, n, false);
      v = Load(t.v, at, n, false);
    }
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (!finite) continue;
      const float d = factor * g.x[i];
      const float m1 = a.beta1 * m.x[i] + a.rest1 * d, v1 = a.beta2 * v.x[i] + a.rest2 * d * d;
      const float p1 = p.x[i] - rate * (m1 * by1 / (sqrtf(v1 * by2) + a.eps) + t.decay * p.x[i]);
      if (!(fabsf(p1) <= t.largest && v1 <= 3.402823466e38f)) continue;  // it stays as it is
      m.x[i] = m1;
      v.x[i] = v1;
      p.x[i] = p1;
    }
    Store(t.new_p, at, n, t.aligned, p);
    Store(t.new_m, at, n, t.aligned, m);
    Store(t.new_v, at, n, t.aligned, v);
    if (t.copy.data != nullptr) Store(t.copy, at, n, t.aligned, p);
  }
}

// scalars: factor, finite, learning_rate, bias1, bias2.
absl::Status SetUp(const Node& n, absl::Span<const Tensor> scalars, AdamWArgs* a) {
  Reals* const to[] = {&a->factor, &a->finite, &a->rate, &a->bias1, &a->bias2};
  for (int i = 0; i < 5; ++i) {
    ASSIGN_OR_RETURN(*to[i], RealsOf(scalars[i]));
  }
  a->beta1 = static_cast<float>(n.Float("beta1"));
  a->beta2 = static_cast<float>(n.Float("beta2"));
  a->rest1 = static_cast<float>(1 - n.Float("beta1"));
  a->rest2 = static_cast<float>(1 - n.Float("beta2"));
  a->eps = static_cast<float>(n.Float("eps"));
  return absl::OkStatus();
}

// in: p, gradient, m, v; out: p, m, v. `copy`: the new p again, or null.
absl::Status AddTensor(double decay, absl::Span<const Tensor> in, absl::Span<const Tensor> out,
                       const Tensor* copy, AdamWArgs* a) {
  AdamWTensor& t = a->tensors[a->count];
  Reals* const from[] = {&t.p, &t.g, &t.m, &t.v};
  Reals* const to[] = {&t.new_p, &t.new_m, &t.new_v};
  t.aligned = true;
  for (int i = 0; i < 4; ++i) {
    ASSIGN_OR_RETURN(*from[i], RealsOf(in[i]));
    t.aligned = t.aligned && IsAligned(in[i].data);
  }
  for (int i = 0; i < 3; ++i) {
    ASSIGN_OR_RETURN(*to[i], RealsOf(out[i]));
    t.aligned = t.aligned && IsAligned(out[i].data);
  }
  if (copy != nullptr) {
    ASSIGN_OR_RETURN(t.copy, RealsOf(*copy));
    t.aligned = t.aligned && IsAligned(copy->data);
  }
  t.largest = static_cast<float>(
      std::min(LargestOf(out[0].dtype), LargestOf(copy != nullptr ? copy->dtype : DType::kF32)));
  t.elements = out[0].elements();
  t.decay = static_cast<float>(decay);
  t.blocks = FlatLaunch(CeilDiv(t.elements, kChunk)).blocks;
  t.first_block = a->count == 0 ? 0 : a->tensors[a->count - 1].first_block + a->tensors[a->count - 1].blocks;
  ++a->count;
  return absl::OkStatus();
}

absl::Status LaunchAdamW(KernelContext& c, const AdamWArgs& a) {
  if (a.count == 0) return absl::OkStatus();
  int64_t most = 0;
  for (int i = 0; i < a.count; ++i) most = std::max(most, a.tensors[i].elements);
  const AdamWTensor& last = a.tensors[a.count - 1];
  LaunchShape l = FlatLaunch(CeilDiv(most, kChunk));
  l.blocks = last.first_block + last.blocks;
  return MOE_LAUNCH(AdamWKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), a);
}

absl::Status AdamW(KernelContext& c) {
  AdamWArgs a = {};
  const absl::Span<const Tensor> in = c.in;
  RETURN_IF_ERROR(SetUp(*c.node, in.subspan(4, 5), &a));
  RETURN_IF_ERROR(AddTensor(c.node->Float("weight_decay"), in.subspan(0, 4), c.out, nullptr, &a));
  return LaunchAdamW(c, a);
}

absl::Status MultiAdamW(KernelContext& c) {
  AdamWArgs a = {};
  const absl::Span<const Tensor> in = c.in, out = c.out;
  RETURN_IF_ERROR(SetUp(*c.node, in.subspan(0, kMultiAdamWScalars), &a));
  for (int i = 0; i < MultiAdamWTensors(*c.node); ++i) {
    double decay = 0;
    if (!absl::SimpleAtod(c.node->Strings("weight_decay")[i], &decay))
      return absl::InternalError("weight_decay");
    const int copy = MultiAdamWCopy(*c.node, i);
    RETURN_IF_ERROR(AddTensor(decay, in.subspan(kMultiAdamWScalars + 4 * i, 4), out.subspan(3 * i, 3),
                              copy < 0 ? nullptr : &out[copy], &a));
  }
  return LaunchAdamW(c, a);
}

}  // namespace

void RegisterCudaOptim(KernelRegistry& r) {
  AddForFloats(r, "optim.adamw", &AdamW);
  AddForFloats(r, "optim.clip", &Clip);
  AddForFloats(r, "optim.multi_adamw", &MultiAdamW);
}

}  // namespace moe::kernels
