#include "moe/runtime/trace.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace moe {
namespace {

TraceEvent Event(int64_t begin_ns, int64_t end_ns, int lane, Category category) {
  return {"op", nullptr, begin_ns, end_ns, 0, lane, category, 0};
}

// Two exchanges of 100 ns: one beside work for 60 of them, one during which the rank waits.
TEST(CommunicationTimeTest, CountsWhatWorkHides) {
  Trace trace(2);
  trace.Add(0, Event(0, 40, 0, Category::kGemm));
  trace.Add(0, Event(20, 120, 1, Category::kCollective));
  trace.Add(0, Event(50, 90, 0, Category::kOther));
  trace.Add(0, Event(0, 500, 2, Category::kOther));  // the action around them is no work
  trace.Add(1, Event(200, 300, 1, Category::kCollective));
  trace.Add(1, Event(300, 400, 0, Category::kGemm));
  const CommunicationTime t = CommunicationOf(trace);
  EXPECT_DOUBLE_EQ(t.seconds, 200e-9);
  EXPECT_DOUBLE_EQ(t.hidden_seconds, 60e-9);
  EXPECT_DOUBLE_EQ(t.hidden(), 0.3);
}

TEST(CommunicationTimeTest, NothingSentNothingHidden) { EXPECT_EQ(CommunicationOf(Trace()).hidden(), 0); }

TEST(TraceTest, OwnsItsNames) {
  Trace trace(1);
  {
    const std::string op = "math.einsum of a plan that is gone", value = "layers.0.moe";
    trace.Add(0, {op.c_str(), &value, 0, 1, 0, 0, Category::kGemm, 0});
  }
  const Trace copy = std::exchange(trace, Trace());
  EXPECT_STREQ(copy.events(0)[0].name, "math.einsum of a plan that is gone");
  EXPECT_EQ(*copy.events(0)[0].detail, "layers.0.moe");
}

// Two barriers at 1000..1400 and 2000..2100 of the first clock: the second process, which is 50000 ahead, was
// in them from 1300 to 1390 and from 2040 to 2110.
TEST(ClockOffsetsTest, TakesTheMiddleOfWhatTheBarriersAllow) {
  const ClockSamples lead = {1, {1000, 2000}, {1400, 2100}};
  const ClockSamples other = {2, {51300, 52040}, {51390, 52110}};
  const ClockSamples neighbour = {1, {900, 1900}, {1500, 2200}};
  const std::vector<int64_t> offsets = ClockOffsets({lead, other, neighbour});
  EXPECT_EQ(offsets[0], 0);
  // At least 52040 - 2100 and 51300 - 1400, at most 51390 - 1000 and 52110 - 2000.
  EXPECT_EQ(offsets[1], (49940 + 50110) / 2);
  EXPECT_EQ(offsets[2], 0);  // one boot, one clock
}

}  // namespace
}  // namespace moe
