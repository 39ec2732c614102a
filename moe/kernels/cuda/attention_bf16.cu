#include "moe/kernels/cuda/attention_kernels.h"

namespace moe::kernels {

template absl::Status LaunchAttention<__nv_bfloat16>(const AttentionArgs& args, cudaStream_t stream);
template absl::Status LaunchAttentionGrad<__nv_bfloat16>(const AttentionArgs& args, cudaStream_t stream);

}  // namespace moe::kernels
