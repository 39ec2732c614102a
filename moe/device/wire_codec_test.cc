#include "moe/device/wire_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "moe/device/convert.h"

namespace moe::device {
namespace {

std::vector<float> Travel(WireFormat wire, const std::vector<float>& x) {
  const int64_t n = static_cast<int64_t>(x.size());
  std::vector<char> bytes(WireBytes(wire, DType::kF32, n) + 1, 0x55);
  EncodeWire(wire, DType::kF32, x.data(), n, bytes.data());
  EXPECT_EQ(bytes.back(), 0x55);
  std::vector<float> y(n);
  DecodeWire(wire, bytes.data(), n, 0, n, y.data());
  return y;
}

TEST(WireCodecTest, ErrorsAreWithinTheStatedBounds) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal;
  for (int n : {1, 5, 127, 128, 129, 1000}) {
    std::vector<float> x(n);
    const float size = std::exp(10 * normal(rng));
    for (float& v : x) v = size * normal(rng) * std::exp(3 * normal(rng));
    x[n / 2] = 0;
    const std::vector<float> bf16 = Travel(WireFormat::kBF16, x), f8 = Travel(WireFormat::kF8, x);
    for (int i = 0; i < n; ++i) {
      float largest = 0;
      for (int j = i / 128 * 128; j < std::min(n, i / 128 * 128 + 128); ++j)
        largest = std::max(largest, std::abs(x[j]));
      EXPECT_LE(std::abs(bf16[i] - x[i]), std::abs(x[i]) / 256) << x[i];
      const float bound = std::max(std::abs(x[i]) / 16, largest / 448 / 1024);
      EXPECT_LE(std::abs(f8[i] - x[i]), 1.0001f * bound) << x[i] << " of at most " << largest;
      if (std::abs(x[i]) == largest) {
        EXPECT_NEAR(f8[i], x[i], 1e-6 * largest);  // the scale is made for it
      }
    }
  }
}

// Every code is a value that comes back, and values in between go to a neighbour, ties to the even code.
TEST(WireCodecTest, RoundsToTheNearestCode) {
  std::vector<float> codes;  // positive
  for (int e = 0; e < 16; ++e) {
    for (int m = 0; m < 8; ++m) {
      if (e == 15 && m == 7) continue;
      codes.push_back(e == 0 ? std::ldexp(float(m), -9) : std::ldexp(float(8 + m), e - 10));
    }
  }
  for (size_t i = 0; i + 1 < codes.size(); ++i) {
    const float low = codes[i], high = codes[i + 1], middle = (low + high) / 2;
    const std::vector<float> y =
        Travel(WireFormat::kF8, {448, low, high, -low, middle, std::nextafter(middle, 0.0f),
                                 std::nextafter(middle, 500.0f), -middle});
    EXPECT_EQ(y[1], low);
    EXPECT_EQ(y[2], high);
    EXPECT_EQ(y[3], -low);
    EXPECT_EQ(y[4], i % 2 == 0 ? low : high);
    EXPECT_EQ(y[5], low);
    EXPECT_EQ(y[6], high);
    EXPECT_EQ(y[7], -y[4]);
  }
}

TEST(WireCodecTest, WhatIsNotFiniteIsSeen) {
  for (float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> x(200, 1.0f);
    x[150] = bad;
    for (WireFormat wire : {WireFormat::kBF16, WireFormat::kF8}) {
      const std::vector<float> y = Travel(wire, x);
      EXPECT_FALSE(std::isfinite(y[150]));
      EXPECT_EQ(y[0], 1.0f);  // of another block
    }
  }
  EXPECT_EQ(Travel(WireFormat::kF8, {0, 0, -0.0f}), (std::vector<float>{0, 0, 0}));
  EXPECT_EQ(Travel(WireFormat::kF8, {1e-45f})[0], 0);  // too small for a scale
}

TEST(WireCodecTest, PartsAndOtherDTypes) {
  std::vector<double> x(300);
  std::vector<float> f(300), part(70);
  for (int i = 0; i < 300; ++i) f[i] = static_cast<float>(x[i] = std::sin(i));
  std::vector<uint16_t> half(300);
  FromF32(DType::kBF16, f.data(), half.data(), 300);
  std::vector<float> rounded(300);
  ToF32(DType::kBF16, half.data(), rounded.data(), 300);
  for (WireFormat wire : {WireFormat::kBF16, WireFormat::kF8}) {
    const std::vector<float> want = Travel(wire, f), want_half = Travel(wire, rounded);
    std::vector<char> bytes(WireBytes(wire, DType::kF64, 300));
    EncodeWire(wire, DType::kF64, x.data(), 300, bytes.data());
    DecodeWire(wire, bytes.data(), 300, 100, 70, part.data());
    for (int i = 0; i < 70; ++i) EXPECT_EQ(part[i], want[100 + i]);
    EncodeWire(wire, DType::kBF16, half.data(), 300, bytes.data());
    DecodeWire(wire, bytes.data(), 300, 230, 70, part.data());
    for (int i = 0; i < 70; ++i) EXPECT_EQ(part[i], want_half[230 + i]);
  }
}

}  // namespace
}  // namespace moe::device
