#include "moe/device/reduce.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "moe/base/status_matchers.h"

namespace moe::device {
namespace {

uint16_t BF16(float x) { return std::bit_cast<uint32_t>(x) >> 16; }  // of values that need no rounding

TEST(Reduce, AddsInAscendingOrder) {
  const std::vector<float> big = {1e8f}, one = {1}, minus = {-1e8f};
  float out;
  ReduceInOrder({big.data(), one.data(), minus.data()}, &out, 1, DType::kF32, Reduction::kSum);
  EXPECT_EQ(out, 0);  // 1e8 + 1 rounds back
  ReduceInOrder({big.data(), minus.data(), one.data()}, &out, 1, DType::kF32, Reduction::kSum);
  EXPECT_EQ(out, 1);
}

TEST(Reduce, NarrowFloatsAccumulateWideAndRoundOnceToEven) {
  // 256 + 1 is no bf16, but 256 + 1 + 1 is: rounding at each step would lose both.
  const uint16_t a = BF16(256), b = BF16(1);
  uint16_t out;
  ReduceInOrder({&a, &b, &b}, &out, 1, DType::kBF16, Reduction::kSum);
  EXPECT_EQ(out, BF16(258));
  ReduceInOrder({&a, &b}, &out, 1, DType::kBF16, Reduction::kSum);
  EXPECT_EQ(out, BF16(256));  // the tie goes to even
  const uint16_t c = BF16(258);
  ReduceInOrder({&c, &b}, &out, 1, DType::kBF16, Reduction::kSum);
  EXPECT_EQ(out, BF16(260));
}

TEST(Reduce, MaximumKeepsNaN) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), one = 1, two = 2;
  float out;
  for (const std::vector<const void*>& in :
       std::vector<std::vector<const void*>>{{&nan, &one, &two}, {&one, &nan, &two}, {&one, &two, &nan}}) {
    ReduceInOrder(in, &out, 1, DType::kF32, Reduction::kMax);
    EXPECT_TRUE(std::isnan(out));
  }
  ReduceInOrder({&one, &two, &one}, &out, 1, DType::kF32, Reduction::kMax);
  EXPECT_EQ(out, 2);
}

TEST(Reduce, OutputMayBeAnyInput) {
  std::vector<int32_t> a(3000, 1), b(3000, 10), c(3000, 100);
  ReduceInOrder({a.data(), b.data(), c.data()}, b.data(), 3000, DType::kS32, Reduction::kSum);
  EXPECT_EQ(b, std::vector<int32_t>(3000, 111));
}

TEST(Reduce, SaysWhatCannotBeReduced) {
  EXPECT_OK(CheckReducible(DType::kPred, Reduction::kMax));
  ExpectError(CheckReducible(DType::kPred, Reduction::kSum), absl::StatusCode::kInvalidArgument, "pred");
  ExpectError(CheckReducible(DType::kF8E4M3, Reduction::kMax), absl::StatusCode::kInvalidArgument, "f8e4m3");
}

}  // namespace
}  // namespace moe::device
