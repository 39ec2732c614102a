#include "moe/base/textproto.h"

#include <gmock/gmock.h>
#include <google/protobuf/struct.pb.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string Nested(absl::string_view open, int times, absl::string_view close) {
  std::string text;
  for (int i = 0; i < times; ++i) absl::StrAppend(&text, open);
  for (int i = 0; i < times; ++i) absl::StrAppend(&text, close);
  return text;
}

// Known fields, unknown fields, which the parser skips by a recursion of its own, and lists of them.
TEST(Textproto, DepthHasALimit) {
  google::protobuf::Value value;
  EXPECT_THAT(ParseTextproto(Nested("list_value { values {", kMaxTextprotoDepth / 2, "} }"), "f", value),
              IsEmpty());
  for (const absl::string_view open :
       {"list_value { values {", "list_value < values <", "other {", "other: {", "a: ["}) {
    EXPECT_THAT(ParseTextproto(Nested(open, 14'000, ""), "f", value),
                ElementsAre(HasSubstr("nest more than 32 deep")))
        << open;
  }
  // What stands in strings and comments nests nothing.
  const std::string brackets(100, '{');
  EXPECT_THAT(
      ParseTextproto(absl::StrCat("string_value: \"\\\"", brackets, "\" # '", brackets, "\n"), "f", value),
      IsEmpty());
  EXPECT_EQ(value.string_value(), absl::StrCat("\"", brackets));
}

TEST(Textproto, BytesHaveALimit) {
  google::protobuf::Value value;
  const std::string text(kMaxTextprotoBytes + 1, ' ');
  ExpectError(MergeTextproto(text, "f.textproto", value), absl::StatusCode::kInvalidArgument, "f.textproto",
              "at most 4194304 are allowed");
  EXPECT_OK(MergeTextproto(text.substr(1), "f.textproto", value));
}

}  // namespace
}  // namespace moe
