// Lines of a text that a person or another system wrote, whatever it ends them with.
//
//   text = UnixLines(std::move(text));    // "\xEF\xBB\xBFone\r\ntwo\rthree" -> "one\ntwo\nthree\n"
//   for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) ...
//
// A plain function over values.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace moe {

// Every line ends with one '\n': those of Windows ("\r\n") and of the old Macintosh ("\r") too, and the last one
// also where the text breaks off. A UTF-8 byte order mark is no part of the first line. Idempotent; an empty text
// has no line.
inline std::string UnixLines(absl::string_view text) {
  constexpr absl::string_view kMark = "\xEF\xBB\xBF";
  if (text.substr(0, kMark.size()) == kMark) text.remove_prefix(kMark.size());
  std::string out;
  out.reserve(text.size() + 1);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    out += text[i] == '\r' ? '\n' : text[i];
  }
  if (!out.empty() && out.back() != '\n') out += '\n';
  return out;
}

}  // namespace moe
