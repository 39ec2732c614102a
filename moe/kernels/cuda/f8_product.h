// Products of operands rounded to block-scaled e4m3 (moe/kernels/rounded_operands.h) on tensor cores.
//
//   RETURN_IF_ERROR(F8Einsum(c, rows, most_rows, memory));    // memory: F8Workspace bytes
//
// One kernel for each operand writes codes and scales to the workspace, [run of the summed side][row][128]
// and [run][row]; one multiplies tiles of 128 x 128 by mma.sync m16n8k32, sums a run of 128 in the tensor
// core and adds it, times the scales of its row and column, to f32 sums in registers (as DeepSeek-V3 does,
// arXiv 2412.19437, section 3.3.2: what a tensor core adds up has fewer bits than f32). Groups and ragged
// rows are found in device memory. The workspace holds what the arena does; rows in the spill, which are
// more, go through it in parts.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "moe/kernels/cuda/context.h"
#include "moe/kernels/cuda/ragged.h"

namespace moe::kernels {

// 0 for what F8Einsum refuses.
int64_t F8Workspace(const ShardingRule& rule, absl::Span<const int64_t> extent, absl::Span<const Tensor> in,
                    absl::Span<const Tensor> out);

// `most_rows`: what ragged operands may have. Error: InvalidArgument for an einsum that is not a grouped
// product, Unimplemented for rows that are ragged elsewhere than the experts' are, and on devices without
// products of e4m3 (below compute capability 8.9).
absl::Status F8Einsum(const KernelContext& c, const RaggedRows& rows, int64_t most_rows, void* memory);

}  // namespace moe::kernels
