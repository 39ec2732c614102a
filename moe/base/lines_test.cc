#include "moe/base/lines.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

TEST(UnixLines, AnyEndOfALineIsOne) {
  const std::string want = "one\n\ntwo\n";
  for (const char* text :
       {"one\n\ntwo\n", "one\n\ntwo", "one\r\n\r\ntwo\r\n", "one\r\n\r\ntwo", "one\r\rtwo\r", "one\r\rtwo",
        "one\n\r\ntwo\r", "one\r\n\rtwo\n", "\xEF\xBB\xBFone\r\n\r\ntwo"}) {
    EXPECT_EQ(UnixLines(text), want);
    EXPECT_EQ(UnixLines(UnixLines(text)), want);
  }
  EXPECT_EQ(UnixLines(""), "");
  EXPECT_EQ(UnixLines("\xEF\xBB\xBF"), "");
  EXPECT_EQ(UnixLines("\r"), "\n");
  EXPECT_EQ(UnixLines("a\xEF\xBB\xBF"), "a\xEF\xBB\xBF\n");  // a mark elsewhere is text
  EXPECT_EQ(UnixLines(absl::string_view("\0\n", 2)), std::string("\0\n", 2));
}

}  // namespace
}  // namespace moe
