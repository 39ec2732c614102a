// Values as they travel in a wire format (moe/ir/wire_format.h), to and from.
//
//   std::vector<char> wire(WireBytes(WireFormat::kF8, DType::kF32, n));
//   EncodeWire(WireFormat::kF8, DType::kF32, x, n, wire.data());
//   DecodeWire(WireFormat::kF8, wire.data(), n, begin, count, part);   // values [begin, begin + count), f32
//
// Rounding is to nearest, ties to even. The error of a value x of a block whose largest magnitude is a:
// bf16 |x| / 256; f8e4m3 max(|x| / 16, a / 448 / 1024). A value that is not finite makes its block NaN in
// f8e4m3 and stays what it is in bf16, so that a non-finite gradient is seen wherever it arrives. Stateless.
#pragma once

#include <cstdint>

#include "moe/ir/types.h"
#include "moe/ir/wire_format.h"

namespace moe::device {

// `dtype`: f64, f32, bf16 or f16.
void EncodeWire(WireFormat wire, DType dtype, const void* x, int64_t n, char* out);
// Of an encoded block of n values.
void DecodeWire(WireFormat wire, const char* in, int64_t n, int64_t begin, int64_t count, float* out);

}  // namespace moe::device
