// nn.attention and nn.attention_grad: by this back end's own kernels, or by cuDNN where the node says so.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "moe/kernels/cuda/attention_launch.h"
#include "moe/kernels/cuda/context.h"
#include "moe/kernels/cuda/cudnn_attention.h"

namespace moe::kernels {

namespace {

absl::StatusOr<AttentionArgs> ArgsOf(const KernelContext& c) {
  AttentionArgs a;
  a.blocks = c.ExtentOr("r", 1);
  a.batch = c.Extent("b") * a.blocks;
  a.s = c.Extent("s"), a.t = c.Extent("t"), a.d = c.Extent("d");
  a.kv_heads = c.Extent("k"), a.per_kv = c.Extent("g");
  a.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(a.d)));
  ASSIGN_OR_RETURN(a.q, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(a.k, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(a.v, RealsOf(c.in[2]));
  a.q_positions = c.in[3].As<int32_t>();
  a.k_positions = c.in[4].As<int32_t>();
  return a;
}

absl::Status WantsF32(const Tensor& t) {
  if (t.dtype == DType::kF32) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("a log-sum-exp in ", DTypeName(t.dtype)));
}

// Tiles are of the storage of q; where another tensor differs, its elements are converted one by one.
void CheckVectors(AttentionArgs& a, absl::Span<const Reals> read) {
  const int64_t per = a.q.storage == Storage::kF32 ? 4 : 8;
  a.vectors = a.d % per == 0;
  for (const Reals& x : read) a.vectors = a.vectors && x.storage == a.q.storage && IsAligned(x.data);
}

// ---- cuDNN

// Its shape on this rank, from the extents of the rule's factors and the dtype of q.
CudnnAttention CudnnShapeOf(const ShardingRule& rule, absl::Span<const int64_t> extent, DType dtype) {
  const auto of = [&](absl::string_view factor) {
    const int f = rule.Find(factor);
    return f < 0 ? 1 : extent[f];
  };
  return {.batch = of("b") * of("r"),
          .s = of("s"),
          .kv_heads = of("k"),
          .per_kv = of("g"),
          .d = of("d"),
          .dtype = dtype};
}

absl::Status CheckCudnn(const KernelContext& c, const CudnnAttention& a) {
  RETURN_IF_ERROR(CheckCudnnAttention(a));
  if (c.Extent("t") != a.s) {
    return absl::UnimplementedError(absl::StrCat("attention by cuDNN, whose mask is by index, of ", a.s,
                                                 " queries and ", c.Extent("t"), " keys"));
  }
  // One dtype, but for the log-sum-exp.
  const Tensor& lse = c.node->Is("nn.attention") ? c.out[1] : c.in[6];
  RETURN_IF_ERROR(WantsF32(lse));
  for (const absl::Span<const Tensor> tensors : {absl::MakeConstSpan(c.in), absl::MakeConstSpan(c.out)}) {
    for (const Tensor& t : tensors) {
      if (&t == &lse || !IsFloat(t.dtype) || t.dtype == a.dtype) continue;
      return absl::UnimplementedError(absl::StrCat("attention by cuDNN in ", DTypeName(a.dtype), " with ",
                                                   DTypeName(t.dtype), " beside it"));
    }
  }
  return absl::OkStatus();
}

absl::Status PrepareCudnn(KernelContext& c) {
  if (!c.node->Has("library")) return absl::OkStatus();
  const CudnnAttention a = CudnnShapeOf(*c.rule, c.extent, c.in[0].dtype);
  RETURN_IF_ERROR(CheckCudnn(c, a));
  return PrepareCudnnAttention(a, c.node->Is("nn.attention_grad"));
}

// [batch, s, heads] to [batch, heads, s]
__global__ void HeadByHeadKernel(const float* lse, int64_t batch, int64_t s, int64_t heads, float* to) {
  const int64_t n = batch * s * heads, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    const int64_t at = i % s, head = i / s % heads, sample = i / s / heads;
    to[i] = lse[(sample * s + at) * heads + head];
  }
}

absl::Status AttentionByCudnn(KernelContext& c) {
  const CudnnAttention a = CudnnShapeOf(*c.rule, c.extent, c.in[0].dtype);
  RETURN_IF_ERROR(CheckCudnn(c, a));
  return RunCudnnAttention(a, {c.in[0].data, c.in[1].data, c.in[2].data, c.out[0].data, c.out[1].data},
                           c.workspace, CudaStreamOf(c));
}

absl::Status AttentionGradByCudnn(KernelContext& c) {
  const CudnnAttention a = CudnnShapeOf(*c.rule, c.extent, c.in[0].dtype);
  RETURN_IF_ERROR(CheckCudnn(c, a));
  Workspace w(c);
  const int64_t queries = a.batch * a.s * a.heads();
  float* const lse = w.Take<float>(queries);
  char* const scratch = w.Take<char>(CudnnBackwardWorkspace(a));
  const LaunchShape shape = FlatLaunch(queries);
  RETURN_IF_ERROR(MOE_LAUNCH(HeadByHeadKernel, GridOf(shape), BlockOf(shape), 0, CudaStreamOf(c),
                             c.in[6].As<float>(), a.batch, a.s, a.heads(), lse));
  return RunCudnnAttentionGrad(a,
                               {c.in[0].data, c.in[1].data, c.in[2].data, c.in[5].data, lse, c.in[7].data,
                                c.out[0].data, c.out[1].data, c.out[2].data},
                               scratch, CudaStreamOf(c));
}

// ---- the ops

int64_t ForwardWorkspace(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent,
                         absl::Span<const Tensor> in, absl::Span<const Tensor>) {
  if (!n.Has("library")) return 0;
  return WorkspacePart(CudnnForwardWorkspace(CudnnShapeOf(rule, extent, in[0].dtype)));
}

absl::Status Attention(KernelContext& c) {
  if (c.node->Has("library")) return AttentionByCudnn(c);
  ASSIGN_OR_RETURN(AttentionArgs a, ArgsOf(c));
  ASSIGN_OR_RETURN(a.o, RealsOf(c.out[0]));
  RETURN_IF_ERROR(WantsF32(c.out[1]));
  a.lse = c.out[1].As<float>();
  CheckVectors(a, {a.q, a.k, a.v});
  const cudaStream_t stream = CudaStreamOf(c);
  switch (a.q.storage) {
    case Storage::kBF16:
      return LaunchAttention<__nv_bfloat16>(a, stream);
    case Storage::kF16:
      return LaunchAttention<__half>(a, stream);
    default:
      return LaunchAttention<float>(a, stream);
  }
}

int64_t GradWorkspace(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent,
                      absl::Span<const Tensor> in, absl::Span<const Tensor>) {
  const int64_t of_lse = WorkspacePart(in[6].elements() * static_cast<int64_t>(sizeof(float)));
  if (n.Has("library")) {
    return of_lse + WorkspacePart(CudnnBackwardWorkspace(CudnnShapeOf(rule, extent, in[0].dtype)));
  }
  return of_lse;  // of delta, which is as large
}

absl::Status AttentionGrad(KernelContext& c) {
  if (c.node->Has("library")) return AttentionGradByCudnn(c);
  ASSIGN_OR_RETURN(AttentionArgs a, ArgsOf(c));
  ASSIGN_OR_RETURN(a.o, RealsOf(c.in[5]));
  RETURN_IF_ERROR(WantsF32(c.in[6]));
  a.lse = c.in[6].As<float>();
  ASSIGN_OR_RETURN(a.dy, RealsOf(c.in[7]));
  ASSIGN_OR_RETURN(a.dq, RealsOf(c.out[0]));
  ASSIGN_OR_RETURN(a.dk, RealsOf(c.out[1]));
  ASSIGN_OR_RETURN(a.dv, RealsOf(c.out[2]));
  a.delta = Workspace(c).Take<float>(c.in[6].elements());
  CheckVectors(a, {a.q, a.k, a.v, a.dy});
  const cudaStream_t stream = CudaStreamOf(c);
  switch (a.q.storage) {
    case Storage::kBF16:
      return LaunchAttentionGrad<__nv_bfloat16>(a, stream);
    case Storage::kF16:
      return LaunchAttentionGrad<__half>(a, stream);
    default:
      return LaunchAttentionGrad<float>(a, stream);
  }
}

void Register(KernelRegistry& r) {
  AddForFloats(r, "nn.attention", &Attention, &ForwardWorkspace, &PrepareCudnn);
  AddForFloats(r, "nn.attention_grad", &AttentionGrad, &GradWorkspace, &PrepareCudnn);
}
const KernelRegistration registration(&Register);

}  // namespace
}  // namespace moe::kernels
