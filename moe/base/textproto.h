// Text form of protobuf messages, as users write and read it.
//
//   RETURN_IF_ERROR(MergeTextproto(text, "my.textproto", config));   // over what `config` has already
//   std::string all = PrintTextproto(config);                        // fields at their zero included
//
// Plain functions; thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"

namespace moe {

// Sets in `message` every field that the text sets, zeros too. InvalidArgument with all unknown fields and
// the first syntax error, each as `file_name`:line:column and with the nearest known field; `message` is then
// unchanged.
absl::Status MergeTextproto(absl::string_view text, absl::string_view file_name,
                            google::protobuf::Message& message);

// Reads a message by itself. One line per problem, as above; empty if there is none.
std::vector<std::string> ParseTextproto(absl::string_view text, absl::string_view file_name,
                                        google::protobuf::Message& message);

// All singular fields in order of their numbers, also those at zero, so that merging the result over other
// defaults gives the same message again. Submessages are printed even if unset; maps and repeated fields as
// they are.
std::string PrintTextproto(const google::protobuf::Message& message);

}  // namespace moe
