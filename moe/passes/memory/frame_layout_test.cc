#include "moe/passes/memory/frame_layout.h"

#include <gtest/gtest.h>

#include <random>

namespace moe::passes {
namespace {

TEST(FrameLayout, BuffersThatMeetInTimeStayApartInSpace) {
  std::mt19937 random(7);
  for (int round = 0; round < 50; ++round) {
    std::vector<Lifetime> buffers;
    for (int i = 0; i < 60; ++i) {
      const int first = static_cast<int>(random() % 100);
      buffers.push_back(
          {first, first + static_cast<int>(random() % 20), static_cast<int64_t>(random() % 5000)});
    }
    const Layout layout = LayOut(buffers, 64);
    EXPECT_GE(layout.bytes, layout.lower_bound);
    for (size_t i = 0; i < buffers.size(); ++i) {
      EXPECT_EQ(layout.offsets[i] % 64, 0);
      EXPECT_LE(layout.offsets[i] + buffers[i].bytes, layout.bytes);
      for (size_t j = 0; j < i; ++j) {
        if (buffers[i].last < buffers[j].first || buffers[j].last < buffers[i].first) continue;
        EXPECT_TRUE(layout.offsets[i] + buffers[i].bytes <= layout.offsets[j] ||
                    layout.offsets[j] + buffers[j].bytes <= layout.offsets[i]);
      }
    }
  }
}

TEST(FrameLayout, AWriterOnAnotherQueueWaitsForReaders) {
  // Node 0 (queue 0) writes x, node 1 (queue 1) reads it, node 2 (queue 0) writes y over the same bytes.
  const std::vector<int> queues = {0, 1, 0};
  const std::vector<TouchedBuffer> buffers = {{0, 0, 64, {{0, true}, {1, false}}}, {0, 32, 96, {{2, true}}}};
  const std::map<int, std::vector<int>> want = {{1, {0}}, {2, {1}}};
  EXPECT_EQ(WaitsBetweenQueues(queues, buffers), want);
  // Apart in space: only the data edge is left.
  const std::vector<TouchedBuffer> apart = {{0, 0, 64, {{0, true}, {1, false}}}, {0, 64, 96, {{2, true}}}};
  EXPECT_EQ(WaitsBetweenQueues(queues, apart), (std::map<int, std::vector<int>>{{1, {0}}}));
}

}  // namespace
}  // namespace moe::passes
