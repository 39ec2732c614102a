#include "moe/base/json_reader.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/base/utf8.h"

namespace moe {
namespace {

// What an error shows of a text.
std::string Quote(absl::string_view text) {
  constexpr size_t kShown = 60;
  return absl::StrCat("\"", text.substr(0, kShown), text.size() > kShown ? "..." : "", "\"");
}

void AppendUtf8(uint32_t code, std::string* out) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
    return;
  }
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  static constexpr unsigned char kFirst[] = {0, 0xc0, 0xe0, 0xf0};
  out->push_back(static_cast<char>(kFirst[more] | code >> (6 * more)));
  for (int i = more - 1; i >= 0; --i) out->push_back(static_cast<char>(0x80 | (code >> (6 * i) & 0x3f)));
}

}  // namespace

absl::Status JsonReader::Error(absl::string_view what, int64_t at) const {
  return absl::InvalidArgumentError(absl::StrCat("byte ", at, ": ", what));
}

void JsonReader::SkipSpace() {
  while (at_ < text_.size() &&
         (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) {
    ++at_;
  }
}

bool JsonReader::Accept(char c) {
  SkipSpace();
  if (at_ >= text_.size() || text_[at_] != c) return false;
  ++at_;
  return true;
}

absl::Status JsonReader::Expect(char c) {
  if (Accept(c)) return absl::OkStatus();
  const std::string wanted = absl::StrCat("'", std::string(1, c), "' is missing");
  return Error(at_ >= text_.size() ? absl::StrCat("the text ends; ", wanted) : wanted, position());
}

absl::Status JsonReader::Begin() {
  if (static_cast<int64_t>(text_.size()) > limits_.bytes) {
    return Error(absl::StrCat("a text of ", text_.size(), " bytes; at most ", limits_.bytes, " are allowed"),
                 limits_.bytes);
  }
  SkipSpace();
  value_begin_ = at_;
  if (at_ >= text_.size()) return Error("the text ends where a value is expected", position());
  if (++values_ > limits_.values) {
    return Error(absl::StrCat("more than ", limits_.values, " values"), position());
  }
  return absl::OkStatus();
}

JsonReader::Kind JsonReader::Peek() {
  SkipSpace();
  if (at_ >= text_.size()) return Kind::kEnd;
  switch (const char c = text_[at_]) {
    case '{':
      return Kind::kObject;
    case '[':
      return Kind::kList;
    case '"':
      return Kind::kText;
    default:
      return c == '-' || absl::ascii_isdigit(c) ? Kind::kNumber : Kind::kOther;
  }
}

// -?(0|[1-9][0-9]*)(.[0-9]+)?([eE][-+]?[0-9]+)?
absl::StatusOr<absl::string_view> JsonReader::NumberText(bool* integral) {
  const auto is = [&](absl::string_view set) {
    return at_ < text_.size() && absl::StrContains(set, text_[at_]);
  };
  const auto digits = [&] {
    const size_t from = at_;
    while (at_ < text_.size() && absl::ascii_isdigit(text_[at_])) ++at_;
    return at_ > from;
  };
  if (is("-")) ++at_;
  const bool zero = is("0");
  bool good = digits();
  if (zero && good) good = at_ - value_begin_ == (text_[value_begin_] == '-' ? 2 : 1);
  *integral = true;
  if (good && is(".")) {
    ++at_;
    good = digits();
    *integral = false;
  }
  if (good && is("eE")) {
    ++at_;
    if (is("+-")) ++at_;
    good = digits();
    *integral = false;
  }
  if (!good) return Error("not a number");
  return text_.substr(value_begin_, at_ - value_begin_);
}

absl::StatusOr<int64_t> JsonReader::Int(int64_t least, int64_t most) {
  RETURN_IF_ERROR(Begin());
  bool integral = false;
  int64_t value = 0;
  const absl::StatusOr<absl::string_view> number = NumberText(&integral);
  if (!number.ok() || !integral || !absl::SimpleAtoi(*number, &value) || value < least || value > most) {
    return Error(absl::StrCat("not an integer from ", least, " to ", most));
  }
  return value;
}

absl::StatusOr<uint64_t> JsonReader::Unsigned() {
  RETURN_IF_ERROR(Begin());
  bool integral = false;
  uint64_t value = 0;
  const absl::StatusOr<absl::string_view> number = NumberText(&integral);
  if (!number.ok() || !integral || !absl::SimpleAtoi(*number, &value)) {
    return Error(absl::StrCat("not an integer from 0 to ", std::numeric_limits<uint64_t>::max()));
  }
  return value;
}

absl::StatusOr<double> JsonReader::Number(double least, double most) {
  RETURN_IF_ERROR(Begin());
  bool integral = false;
  const absl::StatusOr<absl::string_view> number = NumberText(&integral);
  double value = 0;
  const bool good = number.ok() &&
                    std::from_chars(number->data(), number->data() + number->size(), value).ec == std::errc();
  if (!good || !std::isfinite(value) || value < least || value > most) {
    return Error(absl::StrCat("not a number from ", least, " to ", most));
  }
  return value;
}

absl::StatusOr<bool> JsonReader::Bool() {
  RETURN_IF_ERROR(Begin());
  for (const bool value : {false, true}) {
    const absl::string_view word = value ? "true" : "false";
    if (!absl::StartsWith(text_.substr(at_), word)) continue;
    at_ += word.size();
    return value;
  }
  return Error("not true or false");
}

absl::Status JsonReader::Escape(std::string* out) {
  const int64_t begin = position();
  const auto hex = [&](uint32_t* code) {
    int value = 0;
    const absl::string_view digits = text_.substr(std::min(at_, text_.size()), 4);
    if (digits.size() < 4) return false;
    for (const char c : digits) {
      if (!absl::ascii_isxdigit(c)) return false;
      value = value * 16 + (absl::ascii_isdigit(c) ? c - '0' : absl::ascii_tolower(c) - 'a' + 10);
    }
    at_ += 4;
    *code = static_cast<uint32_t>(value);
    return true;
  };
  if (++at_ >= text_.size()) return Error("this string has no end");
  static constexpr absl::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
  const char c = text_[at_++];
  if (const size_t i = kFrom.find(c); i != absl::string_view::npos) {
    out->push_back(kTo[i]);
    return absl::OkStatus();
  }
  uint32_t code = 0, low = 0;
  if (c != 'u' || !hex(&code)) return Error("this escape is not JSON", begin);
  if (code >= 0xd800 && code < 0xe000) {
    const bool pair = code < 0xdc00 && absl::StartsWith(text_.substr(at_), "\\u");
    if (pair) at_ += 2;
    if (!pair || !hex(&low) || low < 0xdc00 || low > 0xdfff) return Error("half of a surrogate pair", begin);
    code = 0x10000 + ((code - 0xd800) << 10 | (low - 0xdc00));
  }
  AppendUtf8(code, out);
  return absl::OkStatus();
}

absl::Status JsonReader::String(int64_t max_bytes, std::string* out) {
  value_begin_ = at_;
  if (!Accept('"')) return Error("not a string");
  max_bytes = std::min(max_bytes, limits_.string_bytes);
  out->clear();
  while (true) {
    if (at_ >= text_.size()) return Error("this string has no end");
    if (static_cast<int64_t>(out->size()) > max_bytes) {
      return Error(absl::StrCat("a string of more than ", max_bytes, " bytes"));
    }
    const auto c = static_cast<unsigned char>(text_[at_]);
    if (c == '"') break;
    if (c == '\\') {
      RETURN_IF_ERROR(Escape(out));
      continue;
    }
    const int length = Utf8Length(text_.substr(at_));
    if (c < 0x20 || length == 0) {
      return Error(c < 0x20 ? "a control character in a string" : "this string is not UTF-8", position());
    }
    out->append(text_.data() + at_, length);
    at_ += length;
  }
  ++at_;
  return absl::OkStatus();
}

absl::StatusOr<std::string> JsonReader::Text(int64_t max_bytes) {
  RETURN_IF_ERROR(Begin());
  std::string out;
  RETURN_IF_ERROR(String(max_bytes, &out));
  return out;
}

absl::Status JsonReader::Open() {
  if (++depth_ <= limits_.depth) return absl::OkStatus();
  return Error(absl::StrCat("nested more than ", limits_.depth, " deep"));
}

absl::Status JsonReader::List(int64_t max_elements, absl::FunctionRef<absl::Status()> element) {
  RETURN_IF_ERROR(Begin());
  const int64_t begin = value_begin();
  if (!Accept('[')) return Error("not a list");
  RETURN_IF_ERROR(Open());
  for (int64_t count = 0; !Accept(']'); ++count) {
    if (count > 0) RETURN_IF_ERROR(Expect(','));
    if (count >= max_elements) {
      return Error(absl::StrCat("a list of more than ", max_elements, " elements"), begin);
    }
    RETURN_IF_ERROR(element());
  }
  --depth_;
  value_begin_ = static_cast<size_t>(begin);
  return absl::OkStatus();
}

absl::Status JsonReader::Object(absl::FunctionRef<absl::Status(const std::string& key)> member) {
  RETURN_IF_ERROR(Begin());
  const int64_t begin = value_begin();
  if (!Accept('{')) return Error("not a JSON object");
  RETURN_IF_ERROR(Open());
  std::string key;
  for (int64_t count = 0; !Accept('}'); ++count) {
    if (count > 0) RETURN_IF_ERROR(Expect(','));
    RETURN_IF_ERROR(Begin());
    RETURN_IF_ERROR(String(limits_.string_bytes, &key));
    const size_t key_begin = value_begin_;
    RETURN_IF_ERROR(Expect(':'));
    key_begin_ = key_begin;
    RETURN_IF_ERROR(member(key));
  }
  --depth_;
  value_begin_ = static_cast<size_t>(begin);
  return absl::OkStatus();
}

absl::Status JsonReader::Skip() {
  switch (Peek()) {
    case Kind::kObject:  // recursion ends at limits_.depth
      return Object([&](const std::string&) { return Skip(); });
    case Kind::kList:
      return List(limits_.values, [&] { return Skip(); });
    case Kind::kText:
      return Text(limits_.string_bytes).status();
    default:
      break;
  }
  RETURN_IF_ERROR(Begin());
  for (const absl::string_view word : {"true", "false", "null"}) {
    if (!absl::StartsWith(text_.substr(at_), word)) continue;
    at_ += word.size();
    return absl::OkStatus();
  }
  bool integral = false;
  return NumberText(&integral).ok() ? absl::OkStatus() : Error("not a value");
}

absl::Status JsonReader::End() {
  SkipSpace();
  return at_ == text_.size() ? absl::OkStatus() : Error("something follows the end of the value", position());
}

JsonFields& JsonFields::Optional() {
  next_is_optional_ = true;
  return *this;
}

void JsonFields::Value(std::string key, std::function<absl::Status()> read) {
  fields_.push_back({std::move(key), std::move(read), std::exchange(next_is_optional_, false)});
}

namespace {

template <typename T>
absl::Status Store(absl::StatusOr<T> read, T* to) {
  if (read.ok()) *to = *std::move(read);
  return read.status();
}

}  // namespace

void JsonFields::Int(std::string key, int64_t least, int64_t most, int64_t* to) {
  Value(std::move(key), [=, this] { return Store(json_->Int(least, most), to); });
}
void JsonFields::Unsigned(std::string key, uint64_t* to) {
  Value(std::move(key), [=, this] { return Store(json_->Unsigned(), to); });
}
void JsonFields::Number(std::string key, double least, double most, double* to) {
  Value(std::move(key), [=, this] { return Store(json_->Number(least, most), to); });
}
void JsonFields::Text(std::string key, int64_t max_bytes, std::string* to) {
  Value(std::move(key), [=, this] { return Store(json_->Text(max_bytes), to); });
}
void JsonFields::Bool(std::string key, bool* to) {
  Value(std::move(key), [=, this] { return Store(json_->Bool(), to); });
}

absl::Status JsonFields::Read(bool skip_others) {
  std::set<std::string> others;
  RETURN_IF_ERROR(json_->Object([&](const std::string& key) -> absl::Status {
    const int64_t at = json_->key_begin();
    for (Field& field : fields_) {
      if (field.key != key) continue;
      if (std::exchange(field.seen, true)) return json_->Error(absl::StrCat(Quote(key), " occurs twice"), at);
      const absl::Status read = field.read();
      // The innermost error says where; the keys around it, of what.
      if (read.ok()) return read;
      return absl::Status(read.code(), absl::StrCat(read.message(), ", in ", Quote(key)));
    }
    if (!skip_others) return json_->Error(absl::StrCat("unknown key ", Quote(key)), at);
    if (!others.insert(key).second) return json_->Error(absl::StrCat(Quote(key), " occurs twice"), at);
    return json_->Skip();
  }));
  std::vector<std::string> missing;
  for (const Field& field : fields_) {
    if (!field.seen && !field.optional) missing.push_back(Quote(field.key));
  }
  if (missing.empty()) return absl::OkStatus();
  return json_->Error(
      absl::StrCat(absl::StrJoin(missing, ", "), missing.size() > 1 ? " are" : " is", " missing"));
}

}  // namespace moe
