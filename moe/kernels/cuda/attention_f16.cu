#include "moe/kernels/cuda/attention_kernels.h"

namespace moe::kernels {

template absl::Status LaunchAttention<__half>(const AttentionArgs& args, cudaStream_t stream);
template absl::Status LaunchAttentionGrad<__half>(const AttentionArgs& args, cudaStream_t stream);

}  // namespace moe::kernels
