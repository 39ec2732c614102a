// What is written is read back, and what is not a frame is refused at the byte that is wrong.

#include "moe/comm/store/frames.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"

namespace moe::comm {
namespace {

constexpr absl::StatusCode kWrong = absl::StatusCode::kInvalidArgument;

std::string BodyOf(const Frame& frame) { return FrameBytes(frame).substr(kFrameHead); }

TEST(Frames, AreReadAsTheyWereWritten) {
  const std::string large(kMaxStoreValue, 'x'), key(kMaxStoreKey, 'k');
  for (const Frame& frame :
       {Frame{FrameType::kSet, 0, 1, "gloo/3", "value"},
        Frame{FrameType::kSetOnce, 0, ~uint64_t{0}, key, large}, Frame{FrameType::kSet, 0, 0, "empty", ""},
        Frame{FrameType::kGet, 0, 7, "abort", ""}, Frame{FrameType::kPeek, 0, 8, "abort", ""},
        Frame{FrameType::kCancel, 0, 9, "", ""}, Frame{FrameType::kStored, 1, 10, "", ""},
        Frame{FrameType::kValue, 0, 11, "", large}, Frame{FrameType::kError, 5, 12, "", "not there"}}) {
    const std::string bytes = FrameBytes(frame);
    ASSERT_OK_AND_ASSIGN(const size_t size, FrameSize(absl::string_view(bytes).substr(0, kFrameHead)));
    ASSERT_EQ(size, bytes.size() - kFrameHead);
    ASSERT_OK_AND_ASSIGN(const Frame got, ParseFrame(absl::string_view(bytes).substr(kFrameHead)));
    EXPECT_EQ(got.type, frame.type);
    EXPECT_EQ(got.code, frame.code);
    EXPECT_EQ(got.id, frame.id);
    EXPECT_TRUE(got.key == frame.key && got.value == frame.value) << frame.id;
  }
}

TEST(Frames, SizesAreBounded) {
  ExpectError(FrameSize(std::string(4, '\xff')).status(), kWrong, "a frame of 4294967295 bytes", "1048844");
  ExpectError(FrameSize(std::string(4, '\0')).status(), kWrong, "a frame of 0 bytes");
  ExpectError(FrameSize("GET").status(), kWrong, "4 bytes, not 3");
  ExpectError(FrameSize("GET ").status(), kWrong, "a frame of 542393671 bytes");
}

TEST(Frames, WhatIsWrongIsNamedByItsByte) {
  const std::string good = BodyOf({FrameType::kSet, 0, 1, "gloo/3", "value"});
  const auto with = [&](size_t at, char c) {
    std::string bytes = good;
    bytes[at] = c;
    return ParseFrame(bytes).status();
  };
  ExpectError(with(0, 0), kWrong, "byte 0", "no type 0");
  ExpectError(with(0, 9), kWrong, "byte 0", "no type 9");
  ExpectError(with(1, 1), kWrong, "byte 1", "code 1");
  ExpectError(with(10, 100), kWrong, "byte 10", "a key of 100 bytes");
  ExpectError(with(11, 100), kWrong, "byte 10");
  ExpectError(with(10, 0), kWrong, "byte 10", "a key of 0 bytes");
  ExpectError(with(12, ' '), kWrong, "byte 12", "printable");
  ExpectError(ParseFrame(good.substr(0, 11)).status(), kWrong, "11 bytes");
  ExpectError(ParseFrame(BodyOf({FrameType::kGet, 0, 1, "abort", "value"})).status(), kWrong, "byte 17",
              "a value");
  ExpectError(ParseFrame(BodyOf({FrameType::kCancel, 0, 1, "abort", ""})).status(), kWrong, "byte 10");
  ExpectError(ParseFrame(BodyOf({FrameType::kError, 0, 1, "", "why"})).status(), kWrong, "byte 1");
  ExpectError(
      ParseFrame(BodyOf({FrameType::kValue, 0, 1, "", std::string(kMaxStoreValue + 1, 'x')})).status(),
      kWrong, "a value of 1048577 bytes");
}

// Any bytes are refused or are the frame that gives them.
TEST(Frames, AnyBytes) {
  std::mt19937 random(7);
  int frames = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = BodyOf({FrameType::kSetOnce, 0, random(), "gloo/3", "value"});
    for (int edits = random() % 4; edits > 0; --edits)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    bytes.resize(random() % 2 == 0 ? bytes.size() : random() % 40, '\0');
    const absl::StatusOr<Frame> frame = ParseFrame(bytes);
    if (!frame.ok()) continue;
    ++frames;
    EXPECT_EQ(BodyOf(*frame), bytes) << "seed 7, at " << i;
  }
  EXPECT_GT(frames, 1000);
}

}  // namespace
}  // namespace moe::comm
