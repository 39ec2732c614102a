// Frames: the messages between the rendezvous' server and its clients, as bytes. Pure functions, for what comes
// from a socket and for fuzzing; nothing here allocates more than the frame that was checked has bytes.
//
//   const std::string bytes = FrameBytes({.type = FrameType::kSet, .id = 7, .key = "gloo/3", .value = address});
//   ASSIGN_OR_RETURN(const size_t size, FrameSize(bytes.substr(0, kFrameHead)));  // of the body that follows
//   ASSIGN_OR_RETURN(const Frame frame, ParseFrame(bytes.substr(kFrameHead, size)));
//
// A frame is its body's size (4 bytes), type, code (1 byte each), id (8), size of the key (2), key and value. All
// numbers are little endian. A Frame points into the bytes that it was parsed from. Thread-compatible.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/comm/store/store.h"

namespace moe::comm {

enum class FrameType : uint8_t {
  kSet = 1,      // a client's: key, value
  kSetOnce = 2,  // the same, unless the key has a value
  kGet = 3,      // key; answered once it has a value
  kPeek = 4,     // key; answered at once
  kCancel = 5,   // of the kGet with this id, which is not answered any more
  kStored = 6,   // an answer: code 1 if the value was stored, else 0
  kValue = 7,    // an answer: value
  kError = 8,    // an answer: code is an absl::StatusCode, value its message
};

struct Frame {
  FrameType type = FrameType::kSet;
  uint8_t code = 0;
  uint64_t id = 0;  // of the question, given by the client
  absl::string_view key, value;
};

inline constexpr size_t kFrameHead = 4;
inline constexpr size_t kSmallestFrame = 12;  // a body without key and value
inline constexpr size_t kLargestFrame = kSmallestFrame + kMaxStoreKey + kMaxStoreValue;

// Head and body. The key and value are those that a store takes (CheckStoreEntry).
std::string FrameBytes(const Frame& frame);
// The size of the body that follows this head of kFrameHead bytes. InvalidArgument for one out of bounds.
absl::StatusOr<size_t> FrameSize(absl::string_view head);
// A body. InvalidArgument, naming the byte, for what is not a frame. A key is one that a store takes, or empty where
// the type has none.
absl::StatusOr<Frame> ParseFrame(absl::string_view body);

}  // namespace moe::comm
