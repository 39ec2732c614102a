#include "moe/device/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "moe/base/clock.h"
#include "moe/base/status_matchers.h"
#include "moe/device/stream_timer.h"
#include "moe/testing/delayed_device.h"

namespace moe::device {
namespace {

TEST(Device, WordsAreParsed) {
  ASSERT_OK_AND_ASSIGN(const DeviceKind cpu, ParseDeviceKind("cpu"));
  EXPECT_EQ(cpu, DeviceKind::kHost);
  ExpectError(ParseDeviceKind("tpu"), absl::StatusCode::kInvalidArgument, "'tpu'", "cpu and cuda");
}

TEST(Device, WhatIsNotBuiltSaysSo) {
  ASSERT_OK(LoadBackend(DeviceKind::kHost));
  ExpectError(LoadBackend(DeviceKind::kCuda), absl::StatusCode::kUnavailable, "not built", "--config=cuda",
              "--device=cpu");
  EXPECT_EQ(CountDevices(DeviceKind::kCuda), 0);
  ExpectError(OpenDevice(DeviceKind::kCuda, 0), absl::StatusCode::kUnavailable, "not built");
  ExpectError(OpenDevice(DeviceKind::kHost, 1), absl::StatusCode::kInvalidArgument, "no cpu device 1");
}

TEST(Device, HostStreamsWorkAtOnce) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Device> device, OpenDevice(DeviceKind::kHost, 0));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<DeviceMemory> memory, device->Allocate(64));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Stream> stream, device->NewStream("compute"));
  const float x[4] = {1, 2, 3, 4}, y[4] = {10, 20, 30, 40};
  const void* const sources[] = {x, y};
  float* const sum = reinterpret_cast<float*>(memory->data());
  ASSERT_OK(stream->Reduce(sources, sum, 4, DType::kF32, Reduction::kSum));
  EXPECT_THAT(std::vector<float>(sum, sum + 4), ::testing::ElementsAre(11, 22, 33, 44));
  StridedCopy column;
  column.loops = {{2, 2, 1}};
  ASSERT_OK(stream->CopyRows(column, 1, x, 4, sum, 2, sizeof(float)));
  EXPECT_THAT(std::vector<float>(sum, sum + 4), ::testing::ElementsAre(1, 3, 33, 44));
  ASSERT_OK(stream->Fill(sum, 0, 8));
  EXPECT_EQ(sum[1], 0);
  EXPECT_EQ(stream->device(), device.get());
  ExpectError(stream->BeginGraph(), absl::StatusCode::kFailedPrecondition, "no graphs");
  ExpectError(device->Allocate(-1), absl::StatusCode::kResourceExhausted, "-1");
}

TEST(Device, TimedEventsTellHowLongWorkTook) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Device> device, OpenDevice(DeviceKind::kHost, 0));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Stream> stream, device->NewStream("compute"));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Event> begin, device->NewTimedEvent());
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Event> end, device->NewTimedEvent());
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Event> untimed, device->NewEvent());
  ASSERT_OK(stream->Record(begin.get()));
  absl::SleepFor(absl::Milliseconds(2));
  ASSERT_OK(stream->Record(untimed.get()));
  ExpectError(device->SecondsBetween(*begin, *end), absl::StatusCode::kFailedPrecondition, "never recorded");
  ASSERT_OK(stream->Record(end.get()));
  ASSERT_OK_AND_ASSIGN(const double seconds, device->SecondsBetween(*begin, *end));
  EXPECT_GE(seconds, 1e-3);
  ExpectError(device->SecondsBetween(*begin, *untimed), absl::StatusCode::kFailedPrecondition, "not timed");
}

// By the host's clock, on a device that is late and on one that is not.
TEST(Device, MarksTellWhenStreamsReachThem) {
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<Device> host, OpenDevice(DeviceKind::kHost, 0));
  for (const bool late : {false, true}) {
    const std::unique_ptr<Device> device = late ? testing::NewDelayedDevice(0, 17) : std::move(host);
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Stream> first, device->NewStream("compute"));
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Stream> second, device->NewStream("comm"));
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Event> done, device->NewEvent());
    ASSERT_OK_AND_ASSIGN(const auto clock, ClockReference::Create(first.get()));
    StreamTimer a(first.get()), b(second.get());
    ASSERT_OK(a.Reserve(2));
    ASSERT_OK(b.Reserve(1));
    const int64_t before = NowNanos();
    ASSERT_OK(clock->Set());
    std::vector<char> memory(1 << 20);
    ASSERT_OK(a.Mark().status());
    for (int i = 0; i < 100; ++i) ASSERT_OK(first->Fill(memory.data(), 1, 1 << 20));
    ASSERT_OK(a.Mark().status());
    ASSERT_OK(first->Record(done.get()));
    ASSERT_OK(second->Wait(done.get()));
    ASSERT_OK(b.Mark().status());
    const int64_t given = NowNanos();
    std::vector<int64_t> times;
    for (const auto& [timer, mark] : {std::pair{&a, 0}, {&a, 1}, {&b, 0}}) {
      ASSERT_OK_AND_ASSIGN(times.emplace_back(), clock->HostNanos(*timer, mark));
    }
    const int64_t after = NowNanos();
    EXPECT_GE(times[0], before);
    EXPECT_GE(times[1] - times[0], 100 * 1000) << "100 MiB were written in less than 0.1 ms";
    EXPECT_GE(times[2], times[1]) << "of a stream that waits for the other";
    EXPECT_LE(times[2], late ? after : given);
    ASSERT_OK_AND_ASSIGN(const double seconds, a.Seconds(0, 1));
    EXPECT_NEAR(1e9 * seconds, static_cast<double>(times[1] - times[0]), 2);
    ExpectError(a.Mark(), absl::StatusCode::kResourceExhausted, "the 2 marks");
    a.Clear();
    ASSERT_OK_AND_ASSIGN(const int64_t again, a.Mark());
    EXPECT_EQ(again, 0);
  }
}

}  // namespace
}  // namespace moe::device
