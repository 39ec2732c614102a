// TextScanner: a cursor over IR text with the lexical rules of the text form, for the parser in
// text_parse.cc.
//
//   TextScanner s(text);
//   RETURN_IF_ERROR(s.Expect("("));
//   ASSIGN_OR_RETURN(std::string name, s.Name("a value name"));
//   return s.Error("...", start_of_word);     // "12:7: ..."
//
// White space and comments (// to the end of the line) may stand between any two tokens. The scanner refers
// to the text, which must outlive it. Errors are InvalidArgument and begin with line:column (both from 1;
// columns in bytes).
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace moe {

class TextScanner {
 public:
  explicit TextScanner(absl::string_view text) : text_(text) {}

  size_t position() const { return position_; }  // of the next character, not past white space
  size_t Here();                                 // of the next token
  bool AtEnd() { return Here() >= text_.size(); }
  absl::string_view text() const { return text_; }

  absl::Status Error(absl::string_view message, size_t at) const;
  absl::Status Error(absl::string_view message) { return Error(message, Here()); }
  // "expected X, found Y" at the next token.
  absl::Status Expected(absl::string_view what);
  std::string Where(size_t at) const;  // "12:7"

  bool Peek(absl::string_view punctuation);    // next token begins with these characters
  bool Accept(absl::string_view punctuation);  // ... and takes them
  absl::Status Expect(absl::string_view punctuation);

  // A word is a run of letters, digits, '_' and '.'.
  absl::string_view PeekWord();
  bool AcceptWord(absl::string_view word);
  absl::StatusOr<std::string> Word(absl::string_view what);  // at most kMaxNameLength long
  // A word, or any text in quotes.
  absl::StatusOr<std::string> Name(absl::string_view what);
  absl::StatusOr<std::string> String(absl::string_view what);  // in quotes, with escapes
  // Characters of a number: "-12", "1e-05", "-inf". Empty if the next token is none.
  absl::string_view PeekNumber();
  absl::StatusOr<int64_t> Int(absl::string_view what, int64_t min, int64_t max);
  void Skip(absl::string_view token) { position_ += token.size(); }

 private:
  absl::string_view text_;
  size_t position_ = 0;
};

}  // namespace moe
