// Kernels in bf16 and f16 by way of f32: operands are widened, the f32 kernel computes, results are rounded
// once.
//
//   const int64_t bytes = WidenedWorkspace(f32_kernel, n, rule, extent, in, out);
//   RETURN_IF_ERROR(RunWidened(f32_kernel, c));   // c.in and c.out may mix bf16, f16 and f32
//
// So arithmetic, statistics and sums are those of f32 whatever is stored, and every op exists in every dtype.
// Operands that are f32 already are read, and f32 results written, where they lie. Elementwise ops go in
// blocks that stay in the nearest cache; others widen whole operands in the workspace. Rows of a ragged value
// beyond its arena bound, which no workspace is planned for, are widened in memory mapped for the run.
// `Prepare` may change what the f32 kernel reads: then all its operands are copies, also of f32. Elementwise
// ops, which never hold an operand whole, take none (Internal).
// Thread-safe.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "moe/kernels/kernel.h"

namespace moe::kernels {

using Prepare = absl::Status (*)(const KernelContext& c, int operand, float* copy);

int64_t WidenedWorkspace(const Kernel& wide, const Node& n, const ShardingRule& rule,
                         absl::Span<const int64_t> extent, absl::Span<const Tensor> in,
                         absl::Span<const Tensor> out, Prepare prepare = nullptr);
absl::Status RunWidened(const Kernel& wide, KernelContext& c, Prepare prepare = nullptr);

}  // namespace moe::kernels
