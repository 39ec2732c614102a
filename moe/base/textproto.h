// Text form of protobuf messages, as users write and read it.
//
//   RETURN_IF_ERROR(MergeTextproto(text, "my.textproto", config));   // over what `config` has already
//   SetDefaults(config);                                             // what the text and `config` left out
//   std::string all = PrintTextproto(config);                        // what is set, zeros too
//
// A text may be hostile: its bytes and its depth are bounded before anything is read.
//
// Plain functions; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"

namespace moe {

inline constexpr int64_t kMaxTextprotoBytes = int64_t{4} << 20;
inline constexpr int kMaxTextprotoDepth = 32;  // of messages within messages

// Sets in `message` every field that the text sets, zeros too. InvalidArgument with all unknown fields and
// the first syntax error, each as `file_name`:line:column and with the nearest known field; `message` is then
// unchanged.
absl::Status MergeTextproto(absl::string_view text, absl::string_view file_name,
                            google::protobuf::Message& message);

// Reads a message by itself. One line per problem, as above; empty if there is none.
std::vector<std::string> ParseTextproto(absl::string_view text, absl::string_view file_name,
                                        google::protobuf::Message& message);

// Sets every field that is not set and has a default in its .proto, also of submessages that are set. After it,
// the text of the message says what it is whatever the defaults of its reader.
void SetDefaults(google::protobuf::Message& message);

// What is set, in order of the fields' numbers, zeros too. Reading it again gives the same message.
std::string PrintTextproto(const google::protobuf::Message& message);

}  // namespace moe
