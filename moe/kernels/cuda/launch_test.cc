// Launch shapes keep within the limits of devices for every extent, and cover all work.

#include "moe/kernels/cuda/launch.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>

#include "moe/kernels/cuda/rank_shape.h"

namespace moe::kernels {
namespace {

constexpr int64_t kExtents[] = {
    0, 1, 7, 31, 32, 33, 255, 1000, 4096, 65535, 1'000'003, 2'147'483'648, 9'000'000'001, int64_t{1} << 42};

void ExpectLegal(const LaunchShape& s) {
  EXPECT_GE(s.blocks, 1);
  EXPECT_LE(s.blocks, kMaxBlocks);
  EXPECT_LT(kMaxBlocks, int64_t{1} << 31);
  EXPECT_GE(s.threads_x, kWarp);
  EXPECT_EQ(s.threads_x % kWarp, 0) << "whole warps: kernels shuffle among all lanes";
  EXPECT_GE(s.threads_y, 1);
  EXPECT_LE(s.threads_x * s.threads_y, kMaxThreads);
}

TEST(LaunchTest, FlatIsLegalAndCovers) {
  for (const int64_t items : kExtents) {
    SCOPED_TRACE(items);
    const LaunchShape s = FlatLaunch(items);
    ExpectLegal(s);
    EXPECT_EQ(s.threads_y, 1);
    if (s.blocks < kMaxBlocks) {
      EXPECT_GE(s.blocks * s.threads_x, items);
      EXPECT_LT((s.blocks - 1) * s.threads_x, std::max<int64_t>(items, 1)) << "a block without work";
    }
  }
}

TEST(LaunchTest, RowsAreLegalAndCover) {
  for (const int64_t rows : kExtents) {
    for (const int64_t width : kExtents) {
      SCOPED_TRACE(::testing::Message() << rows << " rows of " << width);
      for (const LaunchShape& s : {RowLaunch(rows, width), ChunkRowLaunch(rows, width)}) {
        ExpectLegal(s);
        EXPECT_TRUE(s.threads_y == 1 || s.threads_x == kWarp) << "rows of several warps have a block each";
        EXPECT_TRUE(s.blocks == kMaxBlocks || s.blocks * s.threads_y >= rows);
      }
    }
  }
}

// Few threads for small work: an emulated thread costs as much as an idle one.
TEST(LaunchTest, SmallWorkHasSmallBlocks) {
  EXPECT_EQ(FlatLaunch(5).threads_x, 32);
  EXPECT_EQ(FlatLaunch(5).blocks, 1);
  EXPECT_EQ(ChunkRowLaunch(1, 64).threads_x * ChunkRowLaunch(1, 64).threads_y, 32);
  EXPECT_EQ(ChunkRowLaunch(16384, 4096).threads_x, 128);
}

TEST(RankShapeTest, SegmentsCoverItemsAndCountersAreBounded) {
  std::mt19937_64 rng(std::random_device{}());
  for (int i = 0; i < 2000; ++i) {
    const auto up_to = [&](int64_t most) { return static_cast<int64_t>(rng() % most) + 1; };
    const int64_t groups = up_to(i % 2 ? 4 : 4096), items = up_to(i % 3 ? 1 << 10 : 1 << 18);
    const int64_t keys = up_to(i % 5 ? 512 : 200'000);
    const RankShape s = RanksOf(groups, items, keys);
    SCOPED_TRACE(::testing::Message() << groups << " groups, " << items << " items, " << keys << " keys");
    EXPECT_GE(s.segments * s.segment, items);
    EXPECT_LT((s.segments - 1) * s.segment, items);
    const int64_t one_each = groups * keys;  // the least there can be
    EXPECT_LE(groups * s.segments * keys, std::max(one_each, kMaxCounters));
    EXPECT_GE(RankWorkspace(s), groups * s.segments * keys * 4);
  }
  const RankShape none = RanksOf(3, 0, 8);
  EXPECT_EQ(none.segments, 1);
}

}  // namespace
}  // namespace moe::kernels
