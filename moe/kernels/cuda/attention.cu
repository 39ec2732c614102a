// nn.attention and nn.attention_grad.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "moe/kernels/cuda/attention_launch.h"
#include "moe/kernels/cuda/context.h"

namespace moe {

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

absl::Status Attention(KernelContext& c) {
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

int64_t GradWorkspace(const Node&, const ShardingRule&, absl::Span<const int64_t>,
                      absl::Span<const Tensor> in, absl::Span<const Tensor>) {
  return WorkspacePart(in[6].elements() * static_cast<int64_t>(sizeof(float)));
}

absl::Status AttentionGrad(KernelContext& c) {
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
  AddForFloats(r, "nn.attention", &Attention);
  AddForFloats(r, "nn.attention_grad", &AttentionGrad, &GradWorkspace);
}
const KernelRegistration registration(&Register);

}  // namespace
}  // namespace moe
