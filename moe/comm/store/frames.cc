#include "moe/comm/store/frames.h"

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"

namespace moe::comm {
namespace {

void AppendNumber(std::string& to, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) to += static_cast<char>(value >> (8 * i));
}

uint64_t NumberAt(absl::string_view from, size_t at, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) value |= uint64_t{static_cast<unsigned char>(from[at + i])} << (8 * i);
  return value;
}

bool HasKey(FrameType type) { return type <= FrameType::kPeek; }
bool HasValue(FrameType type) {
  return type == FrameType::kSet || type == FrameType::kSetOnce || type == FrameType::kValue ||
         type == FrameType::kError;
}

}  // namespace

std::string FrameBytes(const Frame& frame) {
  std::string bytes;
  bytes.reserve(kFrameHead + kSmallestFrame + frame.key.size() + frame.value.size());
  AppendNumber(bytes, kSmallestFrame + frame.key.size() + frame.value.size(), 4);
  AppendNumber(bytes, static_cast<uint8_t>(frame.type), 1);
  AppendNumber(bytes, frame.code, 1);
  AppendNumber(bytes, frame.id, 8);
  AppendNumber(bytes, frame.key.size(), 2);
  bytes.append(frame.key.data(), frame.key.size());
  bytes.append(frame.value.data(), frame.value.size());
  return bytes;
}

absl::StatusOr<size_t> FrameSize(absl::string_view head) {
  if (head.size() != kFrameHead) {
    return absl::InvalidArgumentError(
        absl::StrCat("the head of a frame has ", kFrameHead, " bytes, not ", head.size()));
  }
  const uint64_t size = NumberAt(head, 0, 4);
  if (size < kSmallestFrame || size > kLargestFrame) {
    return absl::InvalidArgumentError(
        absl::StrCat("a frame of ", size, " bytes; legal are ", kSmallestFrame, " to ", kLargestFrame));
  }
  return size;
}

absl::StatusOr<Frame> ParseFrame(absl::string_view body) {
  const auto wrong = [](size_t at, const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat("byte ", at, " of a frame: ", what));
  };
  if (body.size() < kSmallestFrame || body.size() > kLargestFrame) {
    return wrong(
        0, absl::StrCat("it has ", body.size(), " bytes; legal are ", kSmallestFrame, " to ", kLargestFrame));
  }
  Frame frame;
  const uint64_t type = NumberAt(body, 0, 1);
  if (type < static_cast<uint8_t>(FrameType::kSet) || type > static_cast<uint8_t>(FrameType::kError)) {
    return wrong(0, absl::StrCat("there is no type ", type));
  }
  frame.type = static_cast<FrameType>(type);
  frame.code = static_cast<uint8_t>(NumberAt(body, 1, 1));
  const int most = frame.type == FrameType::kError    ? static_cast<int>(absl::StatusCode::kUnauthenticated)
                   : frame.type == FrameType::kStored ? 1
                                                      : 0;
  if (frame.code > most || (frame.type == FrameType::kError && frame.code == 0)) {
    return wrong(1, absl::StrCat("code ", frame.code, " in a frame of type ", type));
  }
  frame.id = NumberAt(body, 2, 8);
  const size_t key = NumberAt(body, 10, 2);
  if (key > kMaxStoreKey || kSmallestFrame + key > body.size() || HasKey(frame.type) != (key > 0)) {
    return wrong(10, absl::StrCat("a key of ", key, " bytes in a frame of type ", type, " and ", body.size(),
                                  " bytes"));
  }
  frame.key = body.substr(kSmallestFrame, key);
  frame.value = body.substr(kSmallestFrame + key);
  if (!HasValue(frame.type) && !frame.value.empty()) {
    return wrong(kSmallestFrame + key, absl::StrCat("a value in a frame of type ", type));
  }
  if (HasKey(frame.type)) {
    if (const absl::Status entry = CheckStoreEntry(frame.key, frame.value); !entry.ok()) {
      return wrong(kSmallestFrame, std::string(entry.message()));
    }
  } else if (frame.value.size() > kMaxStoreValue) {
    return wrong(kSmallestFrame, absl::StrCat("a value of ", frame.value.size(), " bytes"));
  }
  return frame;
}

}  // namespace moe::comm
