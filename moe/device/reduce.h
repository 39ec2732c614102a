// Reduction of several buffers into one, in the canonical order of the project: ascending contributor.
//
//   ReduceInOrder({a, b, c}, out, n, DType::kBF16, Reduction::kSum);   // bf16(f32(a) + f32(b) + f32(c))
//
// f64 accumulates in f64, s32 and s64 in themselves (wrapping), every other float in f32, rounded once to
// nearest even at the end. A maximum is NaN if any contribution is, so that non-finite values are not lost.
// Stateless.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "moe/ir/types.h"

namespace moe::device {

// InvalidArgument if `dtype` cannot be reduced with `kind` (f8e4m3 at all, pred with sum; max of pred is
// "or").
absl::Status CheckReducible(DType dtype, Reduction kind);

// out[i] = in[0][i] op in[1][i] op ... for i < count. `out` may be one of the inputs; otherwise no overlap.
// The combination must have passed CheckReducible.
void ReduceInOrder(absl::Span<const void* const> in, void* out, int64_t count, DType dtype, Reduction kind);

}  // namespace moe::device
