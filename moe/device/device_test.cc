#include "moe/device/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "moe/base/status_matchers.h"

namespace moe {
namespace {

TEST(Device, WordsAreParsed) {
  ASSERT_OK_AND_ASSIGN(const DeviceKind cpu, ParseDeviceKind("cpu"));
  EXPECT_EQ(cpu, DeviceKind::kHost);
  ExpectError(ParseDeviceKind("tpu"), absl::StatusCode::kInvalidArgument, "'tpu'", "cpu and cuda");
}

TEST(Device, WhatIsNotLinkedInSaysSo) {
  EXPECT_EQ(CountDevices(DeviceKind::kCuda), 0);
  ExpectError(OpenDevice(DeviceKind::kCuda, 0), absl::StatusCode::kUnavailable, "without cuda");
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

}  // namespace
}  // namespace moe
