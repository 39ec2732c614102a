#include "moe/device/wire_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "glog/logging.h"
#include "moe/device/convert.h"

namespace moe::device {
namespace {

constexpr float kLargest = 448;  // of e4m3

// |y| <= 448. Loops over whole blocks call it, with a length known to the compiler.
inline uint8_t ToE4M3(float y) {
  const uint32_t bits = std::bit_cast<uint32_t>(y), sign = bits >> 31, magnitude = bits & 0x7fffffff;
  // Normal from 2^-6 on: 20 bits of the mantissa go, and the exponent's bias changes from 127 to 7.
  const uint32_t rounded = magnitude + 0x7ffff + ((magnitude >> 20) & 1);
  const uint32_t normal = (rounded >> 20) - (120u << 3);
  // Below, multiples of 2^-9: adding 2^14 leaves them in the lowest bits of the sum, rounded.
  const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
  const uint32_t subnormal = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0x1p14f);
  return static_cast<uint8_t>(sign << 7 |
                              (magnitude < std::bit_cast<uint32_t>(0x1p-6f) ? subnormal : normal));
}

const std::array<float, 256>& E4M3Values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> v;
    for (int i = 0; i < 256; ++i) {
      const int exponent = i >> 3 & 15, mantissa = i & 7;
      float x = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
      if ((i & 127) == 127) x = std::numeric_limits<float>::quiet_NaN();
      v[i] = i & 128 ? -x : x;
    }
    return v;
  }();
  return values;
}

// x has kWireBlock values, zeros beyond the end.
float EncodeBlock(const float* x, uint8_t* codes) {
  uint32_t largest = 0;  // of the bits of magnitudes, which order like them; NaN above all
  for (int64_t i = 0; i < kWireBlock; ++i)
    largest = std::max(largest, std::bit_cast<uint32_t>(x[i]) & 0x7fffffff);
  if (largest >= 0x7f800000) {
    std::memset(codes, 0, kWireBlock);
    return std::numeric_limits<float>::quiet_NaN();
  }
  // A subnormal scale would have no inverse.
  const float scale =
      std::max(std::bit_cast<float>(largest) / kLargest, std::numeric_limits<float>::min() * 4);
  const float inverse = 1 / scale;
  for (int64_t i = 0; i < kWireBlock; ++i) {
    const float y = x[i] * inverse;
    codes[i] = ToE4M3(std::min(kLargest, std::max(-kLargest, y)));
  }
  return scale;
}

// `count` values as f32, in `block` unless they are f32 already.
const float* AsF32(DType dtype, const void* x, int64_t begin, int64_t count, float* block) {
  const char* at = static_cast<const char*>(x) + begin * ByteSize(dtype);
  if (dtype == DType::kF32) return reinterpret_cast<const float*>(at);
  if (dtype == DType::kF64) {
    for (int64_t i = 0; i < count; ++i) block[i] = static_cast<float>(reinterpret_cast<const double*>(at)[i]);
  } else {
    ToF32(dtype, at, block, count);
  }
  return block;
}

}  // namespace

void EncodeWire(WireFormat wire, DType dtype, const void* x, int64_t n, char* out) {
  CHECK(wire != WireFormat::kNone);
  const int64_t blocks = (n + kWireBlock - 1) / kWireBlock;
  alignas(64) float values[kWireBlock];
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = b * kWireBlock, count = std::min(kWireBlock, n - begin);
    const float* block = AsF32(dtype, x, begin, count, values);
    if (wire == WireFormat::kBF16) {
      FromF32(DType::kBF16, block, out + 2 * begin, count);
      continue;
    }
    if (block != values) std::memcpy(values, block, count * sizeof(float));
    std::fill(values + count, values + kWireBlock, 0.0f);
    uint8_t codes[kWireBlock];
    const float scale = EncodeBlock(values, codes);
    std::memcpy(out + b * sizeof(float), &scale, sizeof(float));
    std::memcpy(out + blocks * sizeof(float) + begin, codes, count);
  }
}

void DecodeWire(WireFormat wire, const char* in, int64_t n, int64_t begin, int64_t count, float* out) {
  if (wire == WireFormat::kBF16) return ToF32(DType::kBF16, in + 2 * begin, out, count);
  CHECK(wire == WireFormat::kF8);
  const std::array<float, 256>& values = E4M3Values();
  const int64_t blocks = (n + kWireBlock - 1) / kWireBlock;
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(in) + blocks * sizeof(float);
  for (int64_t i = begin; i < begin + count;) {
    const int64_t b = i / kWireBlock, end = std::min(begin + count, (b + 1) * kWireBlock);
    float scale;
    std::memcpy(&scale, in + b * sizeof(float), sizeof(float));
    for (; i < end; ++i) out[i - begin] = values[codes[i]] * scale;
  }
}

}  // namespace moe::device
