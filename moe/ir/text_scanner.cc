#include "moe/ir/text_scanner.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/base/utf8.h"
#include "moe/ir/limits.h"

namespace moe {
namespace {

bool IsWordChar(char c) { return absl::ascii_isalnum(c) || c == '_' || c == '.'; }

}  // namespace

size_t TextScanner::Here() {
  while (position_ < text_.size()) {
    if (absl::ascii_isspace(text_[position_])) {
      ++position_;
    } else if (absl::StartsWith(text_.substr(position_), "//")) {
      position_ = std::min(text_.find('\n', position_), text_.size());
    } else {
      break;
    }
  }
  return position_;
}

std::string TextScanner::Where(size_t at) const {
  const absl::string_view before = text_.substr(0, std::min(at, text_.size()));
  const size_t line = std::count(before.begin(), before.end(), '\n') + 1;
  const size_t start = before.rfind('\n');
  const size_t column = before.size() - (start == absl::string_view::npos ? 0 : start + 1) + 1;
  return absl::StrCat(line, ":", column);
}

absl::Status TextScanner::Error(absl::string_view message, size_t at) const {
  constexpr size_t kLongest = 1000;  // a message may quote the text it is about
  return absl::InvalidArgumentError(
      absl::StrCat(Where(at), ": ", message.substr(0, kLongest), message.size() > kLongest ? " ..." : ""));
}

absl::Status TextScanner::Expected(absl::string_view what) {
  const size_t at = Here();
  std::string found = "the end of the text";
  if (at < text_.size()) {
    absl::string_view token = PeekWord();
    if (token.empty()) token = text_.substr(at, 1);
    const bool printable = absl::ascii_isprint(token[0]);
    found = printable
                ? absl::StrCat("'", token.substr(0, 40), token.size() > 40 ? "..." : "", "'")
                : absl::StrCat("byte 0x", absl::Hex(static_cast<unsigned char>(token[0]), absl::kZeroPad2));
  }
  return Error(absl::StrCat("expected ", what, ", found ", found), at);
}

bool TextScanner::Peek(absl::string_view punctuation) {
  return absl::StartsWith(text_.substr(Here()), punctuation);
}

bool TextScanner::Accept(absl::string_view punctuation) {
  if (!Peek(punctuation)) return false;
  position_ += punctuation.size();
  return true;
}

absl::Status TextScanner::Expect(absl::string_view punctuation) {
  return Accept(punctuation) ? absl::OkStatus() : Expected(absl::StrCat("'", punctuation, "'"));
}

absl::string_view TextScanner::PeekWord() {
  const size_t start = Here();
  size_t end = start;
  while (end < text_.size() && IsWordChar(text_[end])) ++end;
  return text_.substr(start, end - start);
}

bool TextScanner::AcceptWord(absl::string_view word) {
  if (PeekWord() != word) return false;
  position_ += word.size();
  return true;
}

absl::StatusOr<std::string> TextScanner::Word(absl::string_view what) {
  const absl::string_view word = PeekWord();
  if (word.empty()) return Expected(what);
  if (word.size() > kMaxNameLength) {
    return Error(
        absl::StrCat("a name of ", word.size(), " characters; at most ", kMaxNameLength, " are allowed"));
  }
  position_ += word.size();
  return std::string(word);
}

absl::StatusOr<std::string> TextScanner::Name(absl::string_view what) {
  if (!Peek("\"")) return Word(what);
  const size_t at = Here();
  ASSIGN_OR_RETURN(std::string name, String(what));
  if (name.empty()) return Error("a name may not be empty", at);
  if (name.size() > kMaxNameLength) {
    return Error(
        absl::StrCat("a name of ", name.size(), " characters; at most ", kMaxNameLength, " are allowed"), at);
  }
  return name;
}

absl::StatusOr<std::string> TextScanner::String(absl::string_view what) {
  const size_t start = Here();
  if (!Accept("\"")) return Expected(absl::StrCat(what, " in quotes"));
  std::string out;
  while (true) {
    if (position_ >= text_.size() || text_[position_] == '\n') {
      return Error("this string has no closing quote on its line", start);
    }
    if (static_cast<int64_t>(out.size()) > kMaxStringLength) {
      return Error(absl::StrCat("a string longer than ", kMaxStringLength, " bytes"), start);
    }
    const char c = text_[position_];
    if (c == '"') break;
    if (c != '\\') {
      const int length = Utf8Length(text_.substr(position_));
      if (length == 0) return Error("this string is not UTF-8", position_);
      out.append(text_.data() + position_, length);
      position_ += length;
      continue;
    }
    const absl::string_view rest = text_.substr(position_ + 1);
    int code = 0;
    if (rest.empty()) return Error("this string has no closing quote on its line", start);
    switch (rest[0]) {
      case '"':
      case '\\':
        out += rest[0];
        break;
      case 'n':
        out += '\n';
        break;
      case 't':
        out += '\t';
        break;
      case 'r':
        out += '\r';
        break;
      case 'x':
        if (rest.size() < 3 || !absl::ascii_isxdigit(rest[1]) || !absl::ascii_isxdigit(rest[2]) ||
            !absl::SimpleHexAtoi(rest.substr(1, 2), &code) || code > 0x7f) {
          return Error("\\x needs two hexadecimal digits, 00 to 7f", position_);
        }
        out += static_cast<char>(code);
        position_ += 2;
        break;
      default:
        return Error("unknown escape; legal are \\\" \\\\ \\n \\t \\r \\xHH", position_);
    }
    position_ += 2;
  }
  ++position_;
  return out;
}

absl::string_view TextScanner::PeekNumber() {
  const size_t start = Here();
  size_t end = start;
  if (end < text_.size() && text_[end] == '-') ++end;
  while (end < text_.size()) {
    const char c = text_[end];
    const bool exponent_sign =
        (c == '-' || c == '+') && end > start && (text_[end - 1] == 'e' || text_[end - 1] == 'E');
    if (!IsWordChar(c) && !exponent_sign) break;
    ++end;
  }
  return text_.substr(start, end - start);
}

absl::StatusOr<int64_t> TextScanner::Int(absl::string_view what, int64_t min, int64_t max) {
  const absl::string_view number = PeekNumber();
  int64_t value = 0;
  if (number.empty() || !(absl::ascii_isdigit(number[0]) || number[0] == '-')) return Expected(what);
  if (!absl::SimpleAtoi(number, &value) || value < min || value > max) {
    return Error(
        absl::StrCat(what, " must be an integer from ", min, " to ", max, ", not ", number.substr(0, 40)));
  }
  position_ += number.size();
  return value;
}

}  // namespace moe
