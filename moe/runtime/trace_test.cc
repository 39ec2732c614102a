#include "moe/runtime/trace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/testing/delayed_device.h"

namespace moe::runtime {
namespace {

TraceEvent Span(int64_t begin_ns, int64_t end_ns, int lane, Category category) {
  return {"op", nullptr, begin_ns, end_ns, 0, lane, category, 0};
}

// Two exchanges of 100 ns: one beside work for 60 of them, one during which the rank waits.
TEST(CommunicationTimeTest, CountsWhatWorkHides) {
  Trace trace(2);
  trace.Add(0, Span(0, 40, 0, Category::kGemm));
  trace.Add(0, Span(20, 120, 1, Category::kCollective));
  trace.Add(0, Span(50, 90, 0, Category::kOther));
  trace.Add(0, Span(0, 500, 2, Category::kOther));  // the action around them is no work
  trace.Add(1, Span(200, 300, 1, Category::kCollective));
  trace.Add(1, Span(300, 400, 0, Category::kGemm));
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

// A step whose work takes place after it was given: the communication stream waits for the first node, the
// compute stream goes on, and then waits for the exchange.
TEST(TraceRecorderTest, SpansShowWhenStreamsWorked) {
  const std::unique_ptr<device::Device> device = testing::NewDelayedDevice(0, 3);
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<device::Stream> compute, device->NewStream("compute"));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<device::Stream> comm, device->NewStream("comm"));
  ASSERT_OK_AND_ASSIGN(const auto recorder, TraceRecorder::Create(compute.get(), comm.get()));
  ASSERT_OK(recorder->Reserve(/*events=*/7, /*compute_marks_per_step=*/6, /*comm_marks_per_step=*/2));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<device::Event> made, device->NewEvent());
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<device::Event> sent, device->NewEvent());
  std::vector<char> memory(2 << 20);
  const auto node = [&](const char* name, TraceRecorder::Of of) -> absl::Status {
    device::Stream* const stream = of == TraceRecorder::kCompute ? compute.get() : comm.get();
    ASSIGN_OR_RETURN(const int64_t begin, recorder->Mark(of));
    for (int i = 0; i < 50; ++i) RETURN_IF_ERROR(stream->Fill(memory.data() + (of << 20), 1, 1 << 20));
    ASSIGN_OR_RETURN(const int64_t end, recorder->Mark(of));
    recorder->Add({name, nullptr, 0, 0, 0, of, Category::kOther, 0}, of, begin, end);
    return absl::OkStatus();
  };
  const int64_t before = NowNanos();
  for (int step = 0; step < 2; ++step) {
    ASSERT_OK(recorder->BeginStep());
    ASSERT_OK(node("first", TraceRecorder::kCompute));
    ASSERT_OK(compute->Record(made.get()));
    ASSERT_OK(comm->Wait(made.get()));
    ASSERT_OK(node("exchange", TraceRecorder::kComm));
    ASSERT_OK(comm->Record(sent.get()));
    ASSERT_OK(node("beside", TraceRecorder::kCompute));
    ASSERT_OK(compute->Wait(sent.get()));
    ASSERT_OK(node("last", TraceRecorder::kCompute));
    ASSERT_OK(recorder->EndStep());
  }
  ASSERT_OK(compute->Synchronize());  // the event that was dropped is not waited for
  const int64_t after = NowNanos();
  const std::vector<TraceEvent>& events = recorder->events();
  ASSERT_EQ(events.size(), 7u);  // of eight
  EXPECT_EQ(recorder->dropped(), 1);
  int64_t end_of_step = before;
  for (size_t step = 0; step < 2; ++step) {
    const TraceEvent* const e = &events[4 * step];
    EXPECT_GE(e[0].begin_ns, end_of_step);
    EXPECT_GE(e[1].begin_ns, e[0].end_ns);  // the exchange waits for the first
    EXPECT_GE(e[2].begin_ns, e[0].end_ns);  // one stream, one order
    for (size_t i = 0; i < 3; ++i) EXPECT_GE(e[i].end_ns - e[i].begin_ns, 20 * 1000) << e[i].name;
    if (step == 1) break;
    EXPECT_GE(e[3].begin_ns, std::max(e[1].end_ns, e[2].end_ns));
    end_of_step = e[3].end_ns;
  }
  EXPECT_LE(events.back().end_ns, after);
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
}  // namespace moe::runtime
