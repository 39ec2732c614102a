// How numbers and tables look in reports and notes: bytes, seconds, shapes, columns that line up.
//
//   BytesText(655360)         "640 KiB"
//   SecondsText(0.00125)      "1.25 ms"
//   DimsText({4, 1, 128})     "4x1x128"
//
//   Columns table("llr");             // left, left, right
//   table.Row({"all_to_all", "ep", "640 KiB"});
//   out += table.Text();
//
// Plain functions over values, and a table owned by one thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace moe {

std::string BytesText(double bytes);                   // whole B; three digits that count of KiB .. TiB
std::string SecondsText(double seconds);               // likewise in us, ms, s
std::string CountText(int64_t count);                  // 12,345
std::string ShareText(double share);                   // 0.2 -> "20.0%"
std::string DimsText(absl::Span<const int64_t> dims);  // "scalar" for none
// Ascending numbers with runs joined: {0, 1, 2, 5} -> "0-2, 5".
std::string RangesText(absl::Span<const int64_t> numbers);

// At most `width` characters; what is cut off shows as "..".
std::string Shorten(absl::string_view text, size_t width);
// Text for the contents and attributes of XML and of Graphviz HTML labels.
std::string EscapeXml(absl::string_view text);

// Lines whose cells line up, two blanks apart. No trailing blanks.
class Columns {
 public:
  // One letter a column: 'l' left, 'r' right aligned. A row may have fewer cells.
  explicit Columns(std::string alignment, int indent = 2)
      : alignment_(std::move(alignment)), indent_(indent) {}
  void Row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  bool empty() const { return rows_.empty(); }
  std::string Text() const;

 private:
  std::string alignment_;
  int indent_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace moe
