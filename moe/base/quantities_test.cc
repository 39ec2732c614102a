#include "moe/base/quantities.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

TEST(QuantitiesTest, NumbersReadWell) {
  EXPECT_EQ(BytesText(0), "0 B");
  EXPECT_EQ(BytesText(16.0 / 3), "5 B");  // a mean over ranks; nobody sends a part of a byte
  EXPECT_EQ(BytesText(999.7), "1000 B");
  EXPECT_EQ(BytesText(640 * 1024), "640 KiB");
  EXPECT_EQ(BytesText(1300000), "1.24 MiB");
  EXPECT_EQ(BytesText(1023 * 1024), "1 MiB");
  EXPECT_EQ(SecondsText(0.00125), "1.25 ms");
  EXPECT_EQ(CountText(1234567), "1,234,567");
  EXPECT_EQ(CountText(-1234), "-1,234");
  EXPECT_EQ(RangesText({0, 1, 2, 5}), "0-2, 5");
  EXPECT_EQ(EscapeXml("a<b>&\"\n"), "a&lt;b&gt;&amp;&quot; ");
}

TEST(QuantitiesTest, ColumnsLineUp) {
  Columns table("lr");
  table.Row({"send", "8 B"});
  table.Row({"all_reduce", "640 KiB"});
  table.Row({"none"});
  EXPECT_EQ(table.Text(), "  send            8 B\n  all_reduce  640 KiB\n  none\n");
}

}  // namespace
}  // namespace moe
