// WireFormat: how the elements of an exchange travel, where that is narrower than they are.
//
//   {wire = "bf16"} or {wire = "f8e4m3"} on a comm.* node
//
// f8e4m3 is block-scaled: each 128 values have an f32 scale, the largest magnitude over 448, and travel as
// e4m3 of value / scale. A block of n values for one peer is its scales, then its codes. Sums are in f32
// whatever travels. Plain values.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"
#include "moe/ir/types.h"

namespace moe {

enum class WireFormat : uint8_t { kNone, kBF16, kF8 };

inline constexpr int64_t kWireBlock = 128;  // values per scale

inline std::optional<WireFormat> ParseWireFormat(absl::string_view word) {
  if (word.empty()) return WireFormat::kNone;
  if (word == "bf16") return WireFormat::kBF16;
  if (word == "f8e4m3") return WireFormat::kF8;
  return std::nullopt;
}

// Bytes of `n` values for one peer. kNone: of `dtype`.
inline int64_t WireBytes(WireFormat wire, DType dtype, int64_t n) {
  switch (wire) {
    case WireFormat::kBF16:
      return 2 * n;
    case WireFormat::kF8:
      return n + 4 * ((n + kWireBlock - 1) / kWireBlock);
    case WireFormat::kNone:
      break;
  }
  return n * ByteSize(dtype);
}

}  // namespace moe
