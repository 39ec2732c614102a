#include "moe/device/convert.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace moe::device {
namespace {

float One(DType d, float x) {
  uint16_t half = 0;
  float y = 0;
  FromF32(d, &x, &half, 1);
  ToF32(d, &half, &y, 1);
  return y;
}

// The nearest of all finite values of the type, by looking at every one.
float Nearest(const std::vector<float>& all, float x) {
  float best = all[0];
  for (float v : all) {
    if (std::abs(v - x) < std::abs(best - x)) best = v;
  }
  return best;
}

TEST(ConvertTest, EveryHalfComesBack) {
  for (DType d : {DType::kBF16, DType::kF16}) {
    for (uint32_t i = 0; i < 65536; ++i) {
      const uint16_t bits = static_cast<uint16_t>(i);
      float x = 0;
      uint16_t back = 0;
      ToF32(d, &bits, &x, 1);
      FromF32(d, &x, &back, 1);
      if (std::isnan(x)) {
        EXPECT_TRUE(std::isnan(One(d, x))) << i;
      } else {
        ASSERT_EQ(back, bits) << DTypeName(d) << " " << x;
      }
    }
  }
}

TEST(ConvertTest, RoundsToTheNearestAndTiesToEven) {
  EXPECT_EQ(One(DType::kBF16, 257), 256);  // 256 and 258 are as near
  EXPECT_EQ(One(DType::kBF16, 259), 260);
  EXPECT_EQ(One(DType::kBF16, 257.001f), 258);
  EXPECT_EQ(One(DType::kF16, 2049), 2048);
  EXPECT_EQ(One(DType::kF16, 2051), 2052);
  EXPECT_EQ(One(DType::kF16, 65519), 65504);
  EXPECT_EQ(One(DType::kF16, 65520), std::numeric_limits<float>::infinity());
  EXPECT_EQ(One(DType::kF16, -1e9f), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(One(DType::kBF16, std::bit_cast<float>(0x7f800001u))));  // would round to infinity
  std::vector<float> all;
  for (uint32_t i = 0; i < 65536; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i);
    float x = 0;
    ToF32(DType::kF16, &bits, &x, 1);
    if (std::isfinite(x)) all.push_back(x);
  }
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 200; ++i) {
    const float x = normal(rng) * std::exp(4 * normal(rng));
    if (std::abs(x) < 65000) {
      EXPECT_EQ(std::abs(One(DType::kF16, x) - x), std::abs(Nearest(all, x) - x)) << x;
    }
    EXPECT_LE(std::abs(One(DType::kBF16, x) - x), std::abs(x) / 256);
  }
}

TEST(ConvertTest, AnyLengthAndNothingBeyond) {
  for (DType d : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (int n = 0; n < 70; ++n) {
      std::vector<float> x(n + 1, 7), y(n + 1, -1);
      for (int i = 0; i < n; ++i) x[i] = static_cast<float>(i);
      std::vector<char> half((n + 1) * 4, 0x55);
      FromF32(d, x.data(), half.data(), n);
      for (size_t i = n * ByteSize(d); i < half.size(); ++i) ASSERT_EQ(half[i], 0x55);
      ToF32(d, half.data(), y.data(), n);
      for (int i = 0; i < n; ++i) ASSERT_EQ(y[i], i);
      ASSERT_EQ(y[n], -1);
    }
  }
}

}  // namespace
}  // namespace moe::device
