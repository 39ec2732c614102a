// Head and cross-entropy without whole logits: one block of the vocabulary and a run of tokens at a time.

#include <algorithm>

#include "moe/kernels/cuda/blas_lt.h"
#include "moe/kernels/cuda/block_reduce.h"
#include "moe/kernels/cuda/context.h"
#include "moe/kernels/cuda/families.h"
#include "moe/kernels/cuda/tiled_product.h"
#include "moe/kernels/cuda/vec.h"
#include "moe/kernels/larger.h"

namespace moe::kernels {
namespace {

// The local part of the head: u blocks of w words, the first of which has the global id v0; ids from `vocab`
// on are padding.
struct HeadShape {
  int64_t tokens, h, u, w, v0, vocab;
  int64_t run;  // tokens at a time
};

// Logits of a run, and in the backward their gradients, stay below 64 MiB, and so in part in the second
// cache.
HeadShape HeadOf(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent) {
  const auto of = [&](absl::string_view factor) { return extent[rule.Find(factor)]; };
  HeadShape s = {of("b") * of("s"), of("h"), of("u"), of("w"), 0, n.Int("vocab"), 0};
  const int64_t most = (int64_t{64} << 20) / (8 * std::max<int64_t>(1, s.w));
  s.run = std::clamp<int64_t>(most / 128 * 128, 128, std::max<int64_t>(1, s.tokens));
  return s;
}

HeadShape HeadOf(const KernelContext& c) {
  HeadShape s = HeadOf(*c.node, *c.rule, c.extent);
  s.v0 = c.Offset("u") * s.w;
  return s;
}

// ---- products

// c (+)= a b in f32: by cuBLASLt, or by tiles what that does not take, operands of two dtypes for one.
struct Products {
  cudaStream_t stream;
  void* workspace;
  int64_t workspace_bytes;
  bool tf32;

  // The largest of the three products of a run bounds the scratch of all.
  static int64_t WorkspaceBytes(const HeadShape& s) {
    return LtWorkspace(static_cast<double>(s.run) * static_cast<double>(s.w) * static_cast<double>(s.h));
  }
  absl::Status Run(LtProduct p, const Reals& a, const Reals& b, float* c) const {
    p.c_pitch = p.n;
    p.tf32 = tf32;
    if (p.m == 0 || p.n == 0) return absl::OkStatus();
    if (a.storage == b.storage && p.k > 0) {
      p.dtype = a.storage == Storage::kF32    ? DType::kF32
                : a.storage == Storage::kBF16 ? DType::kBF16
                                              : DType::kF16;
      ASSIGN_OR_RETURN(const bool done,
                       MultiplyByLt(p, a.data, b.data, c, workspace, workspace_bytes, stream));
      if (done) return absl::OkStatus();
    }
    return TiledProduct(stream, p.m, p.n, p.k, {a, p.a_by_k ? p.a_pitch : 1, p.a_by_k ? 1 : p.a_pitch},
                        {b, p.b_by_k ? 1 : p.b_pitch, p.b_by_k ? p.b_pitch : 1}, c, p.n, p.accumulate);
  }
};

// logits[tokens, w] = x words^T
absl::Status Logits(const Products& by, const HeadShape& s, int64_t tokens, const Reals& x,
                    const Reals& words, float* logits) {
  return by.Run(
      {.m = tokens, .n = s.w, .k = s.h, .a_by_k = true, .b_by_k = true, .a_pitch = s.h, .b_pitch = s.h}, x,
      words, logits);
}

// ---- forward

struct StatsArgs {
  const float* logits;  // [tokens, w] of block `block`
  const int32_t* labels;
  Reals max, sum, label_logit;
  int64_t tokens, first_token, block;
};

__global__ void StatsKernel(StatsArgs a, HeadShape s) {
  const int64_t first_word = s.v0 + a.block * s.w;
  const int64_t words = s.vocab - first_word < s.w ? s.vocab - first_word : s.w;  // below 1: padding alone
  for (int64_t row = FirstRow(); row < a.tokens; row += RowStep()) {
    const float* const logits = a.logits + row * s.w;
    const int64_t token = a.first_token + row, at = token * s.u + a.block;
    float max = -1e30f, sum = 0;
    for (int64_t j = threadIdx.x; j < words; j += blockDim.x) max = Larger(max, logits[j]);
    max = Rounded(a.max.storage, RowMax(max));  // the sum is relative to the maximum as it is stored
    for (int64_t j = threadIdx.x; j < words; j += blockDim.x) sum += expf(logits[j] - max);
    sum = RowSum(sum);
    if (threadIdx.x != 0) continue;
    StoreOne(a.max, at, max);
    StoreOne(a.sum, at, sum);
    const int64_t label = a.labels[token] - first_word;
    if (label >= 0 && label < words) {
      StoreOne(a.label_logit, token, logits[label]);
    } else if (a.block == 0) {
      StoreOne(a.label_logit, token, 0);
    }
  }
}

int64_t HeadStatsWorkspace(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent,
                           absl::Span<const Tensor>, absl::Span<const Tensor>) {
  const HeadShape s = HeadOf(n, rule, extent);
  return WorkspacePart(s.run * s.w * static_cast<int64_t>(sizeof(float))) +
         WorkspacePart(Products::WorkspaceBytes(s));
}

absl::Status HeadStats(KernelContext& c) {
  const HeadShape s = HeadOf(c);
  const cudaStream_t stream = CudaStreamOf(c);
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals weight, RealsOf(c.in[1]));
  StatsArgs a = {};
  a.labels = c.in[2].As<int32_t>();
  ASSIGN_OR_RETURN(a.max, RealsOf(c.out[0]));
  ASSIGN_OR_RETURN(a.sum, RealsOf(c.out[1]));
  ASSIGN_OR_RETURN(a.label_logit, RealsOf(c.out[2]));
  Workspace w(c);
  float* const logits = w.Take<float>(s.run * s.w);
  const int64_t scratch = Products::WorkspaceBytes(s);
  const Products by = {stream, w.Take<char>(scratch), scratch, c.tf32};
  a.logits = logits;
  for (int64_t first = 0; first < s.tokens; first += s.run) {
    a.first_token = first;
    a.tokens = std::min(s.run, s.tokens - first);
    for (a.block = 0; a.block < s.u; ++a.block) {
      RETURN_IF_ERROR(
          Logits(by, s, a.tokens, Shifted(x, first * s.h), Shifted(weight, a.block * s.w * s.h), logits));
      const LaunchShape l = RowLaunch(a.tokens, s.w);
      RETURN_IF_ERROR(MOE_LAUNCH(StatsKernel, GridOf(l), BlockOf(l), 0, stream, a, s));
    }
  }
  return absl::OkStatus();
}

// ---- backward

struct GradArgs {
  const float* logits;
  const int32_t* labels;
  Reals max, dsum, dlabel;
  Reals dlogits;  // [tokens, w], as the operands of the products that follow
  int64_t tokens, first_token, block;
};

__global__ void LogitGradKernel(GradArgs a, HeadShape s) {
  const int64_t first_word = s.v0 + a.block * s.w;
  for (int64_t row = FirstRow(); row < a.tokens; row += RowStep()) {
    const int64_t token = a.first_token + row, at = token * s.u + a.block;
    const float max = LoadOne(a.max, at), dsum = LoadOne(a.dsum, at), dlabel = LoadOne(a.dlabel, token);
    const int64_t label = a.labels[token] - first_word;
    for (int64_t j = threadIdx.x; j < s.w; j += blockDim.x) {
      float d = 0;
      if (first_word + j < s.vocab) {
        d = dsum * expf(a.logits[row * s.w + j] - max);
        if (j == label) d += dlabel;
      }
      StoreOne(a.dlogits, row * s.w + j, d);
    }
  }
}

__global__ void NarrowKernel(const float* x, Reals y, int64_t n) {
  for (int64_t i = FirstItem(); i < n; i += ItemStep()) StoreOne(y, i, x[i]);
}

int64_t HeadStatsGradWorkspace(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent,
                               absl::Span<const Tensor> in, absl::Span<const Tensor> out) {
  const HeadShape s = HeadOf(n, rule, extent);
  const int64_t f32 = sizeof(float);
  return WorkspacePart(s.run * s.w * f32) + WorkspacePart(s.run * s.w * f32) +
         WorkspacePart(s.run * s.h * f32) +
         WorkspacePart(out[1].dtype == DType::kF32 ? 0 : s.w * s.u * s.h * f32) +
         WorkspacePart(Products::WorkspaceBytes(s));
}

absl::Status HeadStatsGrad(KernelContext& c) {
  const HeadShape s = HeadOf(c);
  const cudaStream_t stream = CudaStreamOf(c);
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals weight, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals dx, RealsOf(c.out[0]));
  ASSIGN_OR_RETURN(const Reals dweight, RealsOf(c.out[1]));
  GradArgs a = {};
  a.labels = c.in[2].As<int32_t>();
  ASSIGN_OR_RETURN(a.max, RealsOf(c.in[3]));
  ASSIGN_OR_RETURN(a.dsum, RealsOf(c.in[4]));
  ASSIGN_OR_RETURN(a.dlabel, RealsOf(c.in[5]));
  Workspace w(c);
  float* const logits = w.Take<float>(s.run * s.w);
  a.logits = logits;
  a.dlogits = Reals{w.Take<float>(s.run * s.w), x.storage};
  float* const dx_sum = w.Take<float>(s.run * s.h);
  float* const dw_sum =
      dweight.storage == Storage::kF32 ? static_cast<float*>(dweight.data) : w.Take<float>(s.u * s.w * s.h);
  const int64_t scratch = Products::WorkspaceBytes(s);
  const Products by = {stream, w.Take<char>(scratch), scratch, c.tf32};
  if (s.tokens == 0) {
    return c.stream->Fill(dweight.data, 0, c.out[1].elements() * ByteSize(c.out[1].dtype));
  }
  for (int64_t first = 0; first < s.tokens; first += s.run) {
    a.first_token = first;
    a.tokens = std::min(s.run, s.tokens - first);
    const Reals run = Shifted(x, first * s.h);
    for (a.block = 0; a.block < s.u; ++a.block) {
      const Reals words = Shifted(weight, a.block * s.w * s.h);
      RETURN_IF_ERROR(Logits(by, s, a.tokens, run, words, logits));
      const LaunchShape l = RowLaunch(a.tokens, s.w);
      RETURN_IF_ERROR(MOE_LAUNCH(LogitGradKernel, GridOf(l), BlockOf(l), 0, stream, a, s));
      RETURN_IF_ERROR(by.Run({.m = a.tokens,
                              .n = s.h,
                              .k = s.w,
                              .a_by_k = true,
                              .b_by_k = false,
                              .a_pitch = s.w,
                              .b_pitch = s.h,
                              .accumulate = a.block > 0},
                             a.dlogits, words, dx_sum));
      RETURN_IF_ERROR(by.Run({.m = s.w,
                              .n = s.h,
                              .k = a.tokens,
                              .a_by_k = false,
                              .b_by_k = false,
                              .a_pitch = s.w,
                              .b_pitch = s.h,
                              .accumulate = first > 0},
                             a.dlogits, run, dw_sum + a.block * s.w * s.h));
    }
    const LaunchShape l = FlatLaunch(a.tokens * s.h);
    RETURN_IF_ERROR(MOE_LAUNCH(NarrowKernel, GridOf(l), BlockOf(l), 0, stream, dx_sum,
                               Shifted(dx, first * s.h), a.tokens * s.h));
  }
  if (dweight.storage == Storage::kF32) return absl::OkStatus();
  const LaunchShape l = FlatLaunch(c.out[1].elements());
  return MOE_LAUNCH(NarrowKernel, GridOf(l), BlockOf(l), 0, stream, dw_sum, dweight, c.out[1].elements());
}

// ---- over blocks

__global__ void MergeSumExpKernel(Reals block_max, Reals block_sum, Reals max, Reals sum, int64_t tokens,
                                  int64_t u) {
  for (int64_t i = FirstItem(); i < tokens; i += ItemStep()) {
    const float m = LoadOne(max, i);
    float all = 0;
    for (int64_t j = i * u; j < (i + 1) * u; ++j)
      all += LoadOne(block_sum, j) * expf(LoadOne(block_max, j) - m);
    StoreOne(sum, i, all);
  }
}

__global__ void MergeSumExpGradKernel(Reals block_max, Reals max, Reals dsum, Reals dblock, int64_t n,
                                      int64_t u) {
  for (int64_t i = FirstItem(); i < n; i += ItemStep())
    StoreOne(dblock, i, expf(LoadOne(block_max, i) - LoadOne(max, i / u)) * LoadOne(dsum, i / u));
}

absl::Status MergeSumExp(KernelContext& c) {
  const int64_t tokens = c.Extent("b") * c.Extent("s"), u = c.Extent("u");
  ASSIGN_OR_RETURN(const Reals block_max, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals block_sum, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals max, RealsOf(c.in[2]));
  ASSIGN_OR_RETURN(const Reals sum, RealsOf(c.out[0]));
  const LaunchShape l = FlatLaunch(tokens);
  return MOE_LAUNCH(MergeSumExpKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), block_max, block_sum, max,
                    sum, tokens, u);
}

absl::Status MergeSumExpGrad(KernelContext& c) {
  const int64_t u = c.Extent("u"), n = c.Extent("b") * c.Extent("s") * u;
  ASSIGN_OR_RETURN(const Reals block_max, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals max, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals dsum, RealsOf(c.in[2]));
  ASSIGN_OR_RETURN(const Reals dblock, RealsOf(c.out[0]));
  const LaunchShape l = FlatLaunch(n);
  return MOE_LAUNCH(MergeSumExpGradKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), block_max, max, dsum,
                    dblock, n, u);
}

}  // namespace

void RegisterCudaLoss(KernelRegistry& r) {
  AddForFloats(r, "nn.head_stats", &HeadStats, &HeadStatsWorkspace);
  AddForFloats(r, "nn.head_stats_grad", &HeadStatsGrad, &HeadStatsGradWorkspace);
  AddForFloats(r, "nn.merge_sum_exp", &MergeSumExp);
  AddForFloats(r, "nn.merge_sum_exp_grad", &MergeSumExpGrad);
}

}  // namespace moe::kernels
