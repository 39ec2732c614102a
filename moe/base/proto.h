// Binary protobuf messages that somebody else wrote, read within limits.
//
//   plan::PlanProto proto;
//   RETURN_IF_ERROR(ParseProto(bytes, {.bytes = 1 << 28, .fields = 1 << 24}, proto));
//   RETURN_IF_ERROR(CheckNumbers(proto, {.most_int64 = int64_t{1} << 60}));
//
// A message of many tiny fields takes a hundred times its bytes in memory. So the bytes are walked once before the message is
// built: their number, the number of fields, and the depth of messages within messages are within the limits, or nothing
// is allocated. Errors are InvalidArgument with the byte. Plain functions; thread-safe.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "google/protobuf/message.h"

namespace moe {

struct ProtoLimits {
  int64_t bytes = 1 << 20;
  int64_t fields = 1 << 16;  // in all messages together; each element of a repeated field is one
  int depth = 32;
};

// Bounds of every number of a message, those of messages within it too: -1, or from 0 on. What has a bound of its own is
// checked beside.
struct ProtoNumbers {
  int64_t most_int64 = int64_t{1} << 53;
  int64_t most_int32 = 1 << 30;
  double most_double = 1e30;  // which is finite
};

absl::Status ParseProto(absl::string_view bytes, const ProtoLimits& limits,
                        google::protobuf::Message& message);

// InvalidArgument naming the first field that is beyond them: "memory.stages[1].offset = -7 ...". The fields of these
// names, and what lies below them, are left out.
absl::Status CheckNumbers(const google::protobuf::Message& message, const ProtoNumbers& numbers,
                          absl::Span<const absl::string_view> except = {});

}  // namespace moe
