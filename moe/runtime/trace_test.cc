#include "moe/runtime/trace.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

TraceEvent Event(int64_t begin_ns, int64_t end_ns, int lane, Category category) {
  return {"op", nullptr, begin_ns, end_ns, 0, lane, category, 0};
}

// Two exchanges of 100 ns: one beside work for 60 of them, one during which the rank waits.
TEST(CommunicationTimeTest, CountsWhatWorkHides) {
  TraceRecorder busy, alone;
  busy.Reserve(8);
  alone.Reserve(8);
  busy.Add(Event(0, 40, 0, Category::kGemm));
  busy.Add(Event(20, 120, 1, Category::kCollective));
  busy.Add(Event(50, 90, 0, Category::kOther));
  busy.Add(Event(0, 500, 2, Category::kOther));  // the action around them is no work
  alone.Add(Event(200, 300, 1, Category::kCollective));
  alone.Add(Event(300, 400, 0, Category::kGemm));
  const CommunicationTime t = CommunicationOf({&busy, &alone});
  EXPECT_DOUBLE_EQ(t.seconds, 200e-9);
  EXPECT_DOUBLE_EQ(t.hidden_seconds, 60e-9);
  EXPECT_DOUBLE_EQ(t.hidden(), 0.3);
}

TEST(CommunicationTimeTest, NothingSentNothingHidden) { EXPECT_EQ(CommunicationOf({}).hidden(), 0); }

}  // namespace
}  // namespace moe
