// Conversion between f32 and the narrower floats, over contiguous elements.
//
//   ToF32(DType::kBF16, x, wide, n);
//   FromF32(DType::kF16, wide, y, n);   // nearest, ties to even; overflow becomes infinity, NaN stays NaN
//
// With the best instruction set that the machine has (Highway). f32 itself is copied. Nothing needs
// alignment; input and output do not overlap. Stateless.
#pragma once

#include <cstdint>

#include "moe/ir/types.h"

namespace moe::device {

// bf16, f16 and f32; CHECK-fails for others.
void ToF32(DType from, const void* x, float* y, int64_t n);
void FromF32(DType to, const float* x, void* y, int64_t n);

}  // namespace moe::device
