#include "moe/runtime/graph_segments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

namespace moe::runtime {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// c: a compute node, w: one that waits, s: one that is waited for, x: one that cannot be recorded, .: another
// queue's.
std::vector<GraphSegment> Of(const std::string& word, size_t least = 1) {
  std::vector<QueueNode> nodes;
  for (const char c : word) nodes.push_back({c != '.', c != 'x', c == 'w', c == 's'});
  return GraphSegments(nodes, least);
}

TEST(GraphSegments, EndWhereQueuesMeet) {
  EXPECT_THAT(Of(""), IsEmpty());
  EXPECT_THAT(Of("ccc"), ElementsAre(GraphSegment{0, 3, 3}));
  EXPECT_THAT(Of("ccwcc"), ElementsAre(GraphSegment{0, 2, 2}, GraphSegment{2, 5, 3}));
  EXPECT_THAT(Of("ccscc"), ElementsAre(GraphSegment{0, 3, 3}, GraphSegment{3, 5, 2}));
  EXPECT_THAT(Of("ccxcc"), ElementsAre(GraphSegment{0, 2, 2}, GraphSegment{3, 5, 2}));
  EXPECT_THAT(Of("xx"), IsEmpty());
}

TEST(GraphSegments, AnotherQueuesNodesDoNotCut) {
  EXPECT_THAT(Of("c.c..c."), ElementsAre(GraphSegment{0, 6, 3}));
  EXPECT_THAT(Of("cs.c.wc"),
              ElementsAre(GraphSegment{0, 2, 2}, GraphSegment{3, 4, 1}, GraphSegment{5, 7, 2}));
}

TEST(GraphSegments, ShortOnesAreLeftOut) { EXPECT_THAT(Of("cwccxc", 2), ElementsAre(GraphSegment{1, 4, 3})); }

TEST(GraphSegments, HoldEveryRecordableNodeOnce) {
  std::mt19937 random(std::random_device{}());
  for (int round = 0; round < 200; ++round) {
    std::string word;
    for (size_t i = random() % 30; i > 0; --i) word += "cwsx."[random() % 5];
    size_t held = 0, end = 0, want = 0;
    for (const char c : word) want += c != 'x' && c != '.';
    for (const GraphSegment& s : Of(word)) {
      EXPECT_GE(s.begin, end) << word;
      end = s.end;
      size_t inside = 0;
      for (size_t i = s.begin; i < s.end; ++i) {
        inside += word[i] != '.';
        EXPECT_NE(word[i], 'x') << word;
        EXPECT_TRUE(word[i] != 'w' || i == s.begin) << word;
        EXPECT_TRUE(word[i] != 's' || i + 1 == s.end) << word;
      }
      EXPECT_EQ(inside, s.nodes) << word;
      held += inside;
    }
    EXPECT_EQ(held, want) << word;
  }
}

}  // namespace
}  // namespace moe::runtime
