// JsonReader: JSON that somebody else wrote, read as it comes, within limits. Nothing is built but what the caller keeps,
// so that a hostile text costs no more than its own size.
//
//   JsonReader json(text, kManifestLimits);
//   int64_t step = 0;
//   std::string name;
//   JsonFields fields(&json);
//   fields.Int("step", 0, kMaxSteps, &step);              // every value has its bounds; 7.5 or "7" is not an integer
//   fields.Text("name", kMaxNameBytes, &name);
//   fields.Optional().Number("loss", 0, 1e9, &loss);
//   RETURN_IF_ERROR(fields.Read());                       // one object: each key once, none missing
//   RETURN_IF_ERROR(json.End());                          // "byte 118: "step" is not an integer from 0 to ..."
//
// The limits hold before anything is allocated: bytes of the text, depth of its lists and objects, number of its values,
// bytes of a string. Text must be UTF-8 and JSON as RFC 8259 says. Errors are InvalidArgument and begin with the byte
// (from 0) at which the text is wrong; after an error the reader is of no use. The text must outlive the reader. One
// thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace moe {

struct JsonLimits {
  int64_t bytes = 1 << 20;         // of the whole text
  int64_t values = 1 << 18;        // in it: numbers, strings, lists, objects, keys
  int64_t string_bytes = 1 << 16;  // of one string or key
  int depth = 16;                  // of lists and objects
};

class JsonReader {
 public:
  JsonReader(absl::string_view text, const JsonLimits& limits) : text_(text), limits_(limits) {}

  // One value of that kind, at the place where the reader stands.
  absl::StatusOr<int64_t> Int(int64_t least, int64_t most);
  absl::StatusOr<uint64_t> Unsigned();
  absl::StatusOr<double> Number(double least, double most);
  absl::StatusOr<bool> Bool();
  absl::StatusOr<std::string> Text(int64_t max_bytes);
  // `element` must read one value each time it is called.
  absl::Status List(int64_t max_elements, absl::FunctionRef<absl::Status()> element);
  // `member` must read the value of `key`. That no key occurs twice is up to it (JsonFields sees to that).
  absl::Status Object(absl::FunctionRef<absl::Status(const std::string& key)> member);
  absl::Status Skip();  // a value of any kind, checked like one that is read
  absl::Status End();   // nothing but white space is left

  enum class Kind { kObject, kList, kText, kNumber, kOther, kEnd };
  Kind Peek();

  // The byte at which the last value, or in an Object's `member` its key, begins; and where the reader stands.
  int64_t value_begin() const { return static_cast<int64_t>(value_begin_); }
  int64_t key_begin() const { return static_cast<int64_t>(key_begin_); }
  int64_t position() const { return static_cast<int64_t>(at_); }
  // "byte 17: what"; without `at`, of the last value.
  absl::Status Error(absl::string_view what, int64_t at) const;
  absl::Status Error(absl::string_view what) const { return Error(what, value_begin()); }

 private:
  absl::Status Begin();  // to the next value; counts it
  void SkipSpace();
  bool Accept(char c);
  absl::Status Expect(char c);
  absl::Status Open();
  absl::StatusOr<absl::string_view> NumberText(bool* integral);
  absl::Status String(int64_t max_bytes, std::string* out);
  absl::Status Escape(std::string* out);

  absl::string_view text_;
  JsonLimits limits_;
  size_t at_ = 0, value_begin_ = 0, key_begin_ = 0;
  int64_t values_ = 0;
  int depth_ = 0;
};

// The members of one object, each declared with its bounds. What is said of the next member alone stands before it.
class JsonFields {
 public:
  explicit JsonFields(JsonReader* json) : json_(json) {}

  JsonFields& Optional();  // the next member may be missing
  void Int(std::string key, int64_t least, int64_t most, int64_t* to);
  void Unsigned(std::string key, uint64_t* to);
  void Number(std::string key, double least, double most, double* to);
  void Text(std::string key, int64_t max_bytes, std::string* to);
  void Bool(std::string key, bool* to);
  // A member of any shape; `read` reads its value.
  void Value(std::string key, std::function<absl::Status()> read);

  // Members that are not declared are skipped, or refused. All that are missing are named.
  absl::Status Read(bool skip_others = true);

 private:
  struct Field {
    std::string key;
    std::function<absl::Status()> read;
    bool optional = false, seen = false;
  };
  JsonReader* json_;
  std::vector<Field> fields_;
  bool next_is_optional_ = false;
};

}  // namespace moe
