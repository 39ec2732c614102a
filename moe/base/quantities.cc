#include "moe/base/quantities.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace moe {
namespace {

// Three digits that count, no trailing zeros.
std::string ThreeDigits(double x) {
  std::string text = absl::StrFormat("%.*f", x >= 99.95 ? 0 : x >= 9.995 ? 1 : 2, x);
  if (text.find('.') != std::string::npos) {
    while (text.back() == '0') text.pop_back();
    if (text.back() == '.') text.pop_back();
  }
  return text;
}

}  // namespace

std::string BytesText(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1000) return absl::StrCat(std::llround(bytes), " B");
  int unit = 0;
  while (bytes >= 1000 && unit < 4) bytes /= 1024, ++unit;
  return absl::StrCat(ThreeDigits(bytes), " ", kUnits[unit]);
}

std::string SecondsText(double seconds) {
  if (seconds < 1e-3) return ThreeDigits(seconds * 1e6) + " us";
  if (seconds < 1) return ThreeDigits(seconds * 1e3) + " ms";
  return ThreeDigits(seconds) + " s";
}

std::string CountText(int64_t count) {
  const std::string digits = absl::StrCat(count < 0 ? -count : count);
  std::string out = count < 0 ? "-" : "";
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

std::string ShareText(double share) { return absl::StrFormat("%.1f%%", 100 * share); }

std::string DimsText(absl::Span<const int64_t> dims) {
  return dims.empty() ? "scalar" : absl::StrJoin(dims, "x");
}

std::string RangesText(absl::Span<const int64_t> numbers) {
  std::string out;
  for (size_t i = 0; i < numbers.size();) {
    size_t j = i;
    while (j + 1 < numbers.size() && numbers[j + 1] == numbers[j] + 1) ++j;
    absl::StrAppend(&out, out.empty() ? "" : ", ", numbers[i]);
    if (j > i) absl::StrAppend(&out, "-", numbers[j]);
    i = j + 1;
  }
  return out;
}

std::string Shorten(absl::string_view text, size_t width) {
  if (text.size() <= width) return std::string(text);
  return width < 3 ? std::string(text.substr(0, width)) : absl::StrCat(text.substr(0, width - 2), "..");
}

std::string EscapeXml(absl::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        // Control characters have no place in XML, escaped or not.
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

std::string Columns::Text() const {
  std::vector<size_t> width(alignment_.size(), 0);
  for (const std::vector<std::string>& row : rows_) {
    for (size_t i = 0; i < row.size() && i < width.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  std::string out;
  for (const std::vector<std::string>& row : rows_) {
    std::string line(indent_, ' ');
    for (size_t i = 0; i < row.size() && i < width.size(); ++i) {
      const std::string pad(width[i] - row[i].size(), ' ');
      absl::StrAppend(&line, i ? "  " : "", alignment_[i] == 'r' ? pad : "", row[i],
                      alignment_[i] == 'r' ? "" : pad);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&out, line, "\n");
  }
  return out;
}

}  // namespace moe
