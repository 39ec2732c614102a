#include "moe/kernels/cuda/attention_kernels.h"

namespace moe::kernels {

template absl::Status LaunchAttention<float>(const AttentionArgs& args, cudaStream_t stream);
template absl::Status LaunchAttentionGrad<float>(const AttentionArgs& args, cudaStream_t stream);

}  // namespace moe::kernels
