#include "moe/base/textproto.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "moe/base/edit_distance.h"

namespace moe {
namespace {

using ::google::protobuf::Descriptor;
using ::google::protobuf::DescriptorPool;
using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;
using ::google::protobuf::TextFormat;

// The quoted words of a message.
std::vector<std::string> Quoted(const std::string& message) {
  std::vector<std::string> words;
  size_t at = 0;
  while ((at = message.find('"', at)) != std::string::npos) {
    const size_t end = message.find('"', at + 1);
    if (end == std::string::npos) break;
    words.push_back(message.substr(at + 1, end - at - 1));
    at = end + 1;
  }
  return words;
}

class Collector : public google::protobuf::io::ErrorCollector {
 public:
  explicit Collector(absl::string_view file) : file_(file) {}
  void AddError(int line, int column, const std::string& message) override { Add(line, column, message); }
  // Unknown fields come as warnings, so that the parser goes on to the next.
  void AddWarning(int line, int column, const std::string& message) override { Add(line, column, message); }
  const std::vector<std::string>& problems() const { return problems_; }

 private:
  void Add(int line, int column, std::string message) {
    if (message.find("has no field named") != std::string::npos) {
      const std::vector<std::string> words = Quoted(message);  // type, field
      if (words.size() >= 2) message = UnknownField(words[0], words[1].substr(0, 80));
    }
    problems_.push_back(absl::StrCat(file_, ":", line + 1, ":", column + 1, ": ", message));
  }

  static std::string UnknownField(const std::string& type, const std::string& name) {
    std::string text = absl::StrCat("unknown field '", name, "'");
    const Descriptor* descriptor = DescriptorPool::generated_pool()->FindMessageTypeByName(type);
    if (descriptor == nullptr) return text;
    const FieldDescriptor* best = nullptr;
    int64_t distance = 0;
    for (int i = 0; i < descriptor->field_count(); ++i) {
      const int64_t d = EditDistance(name, descriptor->field(i)->name());
      if (best == nullptr || d < distance) best = descriptor->field(i), distance = d;
    }
    absl::StrAppend(&text, " in ", descriptor->name());
    if (best != nullptr) absl::StrAppend(&text, "; the nearest known one is '", best->name(), "'");
    return text;
  }

  const std::string file_;
  std::vector<std::string> problems_;
};

// The byte at which brackets nest deeper than messages may, outside of strings and comments; npos if none does. Looked for
// before the parser runs, whose own limit does not hold for fields that it skips.
size_t TooDeep(absl::string_view text) {
  int depth = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '#') {
      i = std::min(text.find('\n', i), text.size());
    } else if (c == '"' || c == '\'') {
      for (++i; i < text.size() && text[i] != c && text[i] != '\n'; ++i) i += text[i] == '\\';
    } else if (c == '{' || c == '<' || c == '[') {
      if (++depth > kMaxTextprotoDepth) return i;
    } else if (c == '}' || c == '>' || c == ']') {
      depth = std::max(0, depth - 1);
    }
  }
  return absl::string_view::npos;
}

void Print(const Message& message, int indent, std::string* out) {
  const Descriptor* descriptor = message.GetDescriptor();
  const google::protobuf::Reflection* reflection = message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  for (int i = 0; i < descriptor->field_count(); ++i) fields.push_back(descriptor->field(i));
  std::sort(fields.begin(), fields.end(),
            [](const auto* a, const auto* b) { return a->number() < b->number(); });
  TextFormat::Printer printer;
  const std::string margin(indent, ' ');
  for (const FieldDescriptor* field : fields) {
    const int count = field->is_repeated()     ? reflection->FieldSize(message, field)
                      : !field->has_presence() ? 1
                                               : reflection->HasField(message, field);
    for (int i = 0; i < count; ++i) {
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        const Message& child = field->is_repeated() ? reflection->GetRepeatedMessage(message, field, i)
                                                    : reflection->GetMessage(message, field);
        absl::StrAppend(out, margin, field->name(), " {\n");
        Print(child, indent + 2, out);
        absl::StrAppend(out, margin, "}\n");
        continue;
      }
      std::string value;
      printer.PrintFieldValueToString(message, field, field->is_repeated() ? i : -1, &value);
      absl::StrAppend(out, margin, field->name(), ": ", value, "\n");
    }
  }
}

}  // namespace

std::vector<std::string> ParseTextproto(absl::string_view text, absl::string_view file_name,
                                        Message& message) {
  if (static_cast<int64_t>(text.size()) > kMaxTextprotoBytes) {
    return {absl::StrCat(file_name, ": a text of ", text.size(), " bytes; at most ", kMaxTextprotoBytes,
                         " are allowed")};
  }
  if (const size_t deep = TooDeep(text); deep != absl::string_view::npos) {
    return {
        absl::StrCat(file_name, ": byte ", deep, ": messages nest more than ", kMaxTextprotoDepth, " deep")};
  }
  Collector collector(file_name);
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&collector);
  parser.AllowUnknownField(true);
  const bool parsed = parser.ParseFromString(std::string(text), &message);
  std::vector<std::string> problems = collector.problems();
  if (!parsed && problems.empty()) {
    problems.push_back(absl::StrCat(file_name, ": not a text-form ", message.GetDescriptor()->name()));
  }
  return problems;
}

absl::Status MergeTextproto(absl::string_view text, absl::string_view file_name, Message& message) {
  // First by itself, so that a field that appears twice is an error; then over what is there.
  std::unique_ptr<Message> alone(message.New());
  const std::vector<std::string> problems = ParseTextproto(text, file_name, *alone);
  if (!problems.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
  TextFormat::Parser merger;
  merger.MergeFromString(std::string(text), &message);
  return absl::OkStatus();
}

void SetDefaults(Message& message) {
  const Descriptor* descriptor = message.GetDescriptor();
  const google::protobuf::Reflection* reflection = message.GetReflection();
  TextFormat::Printer printer;
  std::string text;
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    if (field->is_repeated()) continue;
    const bool set = reflection->HasField(message, field);
    if (set && field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      SetDefaults(*reflection->MutableMessage(&message, field));
    }
    if (set || !field->has_default_value()) continue;
    std::string value;
    printer.PrintFieldValueToString(message, field, -1, &value);
    absl::StrAppend(&text, field->name(), ": ", value, "\n");
  }
  TextFormat::Parser parser;
  parser.MergeFromString(text, &message);
}

std::string PrintTextproto(const Message& message) {
  std::string text;
  Print(message, 0, &text);
  return text;
}

}  // namespace moe
