#include "moe/base/proto.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "moe/base/status.h"

namespace moe {
namespace {

using ::google::protobuf::Descriptor;
using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;

// One value of a field, `index` -1 where it is not repeated; the error goes on where the name of the field ends.
absl::Status CheckValue(const Message& message, const FieldDescriptor& field, int index,
                        const ProtoNumbers& numbers, absl::Span<const absl::string_view> except) {
  const google::protobuf::Reflection& r = *message.GetReflection();
  const bool one = index < 0;
  const auto integer = [](int64_t value, int64_t most) {
    if (value >= -1 && value <= most) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(" = ", value, " is not from -1 to ", most));
  };
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return integer(one ? r.GetInt32(message, &field) : r.GetRepeatedInt32(message, &field, index),
                     numbers.most_int32);
    case FieldDescriptor::CPPTYPE_INT64:
      return integer(one ? r.GetInt64(message, &field) : r.GetRepeatedInt64(message, &field, index),
                     numbers.most_int64);
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      const double value = one ? r.GetDouble(message, &field) : r.GetRepeatedDouble(message, &field, index);
      if (value >= 0 && value <= numbers.most_double) return absl::OkStatus();
      return absl::InvalidArgumentError(
          absl::StrCat(" = ", value, " is not from 0 to ", numbers.most_double));
    }
    case FieldDescriptor::CPPTYPE_MESSAGE: {
      const Message& child =
          one ? r.GetMessage(message, &field) : r.GetRepeatedMessage(message, &field, index);
      const absl::Status status = CheckNumbers(child, numbers, except);
      return status.ok() ? status : absl::InvalidArgumentError(absl::StrCat(".", status.message()));
    }
    default:  // text, flags, and what has all 64 bits
      return absl::OkStatus();
  }
}

// Walks the wire format: https://protobuf.dev/programming-guides/encoding
class Walker {
 public:
  Walker(absl::string_view bytes, const ProtoLimits& limits) : bytes_(bytes), limits_(limits) {}

  // The message of `descriptor` at [at, end).
  absl::Status Walk(const Descriptor* descriptor, size_t at, size_t end, int depth) {
    if (depth > limits_.depth)
      return Error(absl::StrCat("messages nest more than ", limits_.depth, " deep"), at);
    while (at < end) {
      const size_t begin = at;
      uint64_t tag = 0, value = 0;
      if (!Varint(&at, end, &tag)) return Error("a field without a whole tag", begin);
      const FieldDescriptor* field = descriptor == nullptr || tag >> 3 > FieldDescriptor::kMaxNumber
                                         ? nullptr
                                         : descriptor->FindFieldByNumber(static_cast<int>(tag >> 3));
      int64_t elements = 1;
      size_t bytes = 0;
      switch (tag & 7) {
        case 0:
          if (!Varint(&at, end, &value)) return Error("a number without its end", begin);
          break;
        case 1:
          bytes = 8;
          break;
        case 5:
          bytes = 4;
          break;
        case 2:
          if (!Varint(&at, end, &value) || value > end - at) return Error("a length beyond the end", begin);
          bytes = static_cast<size_t>(value);
          if (field != nullptr && field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
            RETURN_IF_ERROR(Walk(field->message_type(), at, at + bytes, depth + 1));
          } else if (field != nullptr && field->is_packable()) {
            elements = static_cast<int64_t>(bytes);  // at most
          }
          break;
        default:
          return Error("a field of an unknown wire type", begin);
      }
      if (bytes > end - at) return Error("a field without its end", begin);
      at += bytes;
      fields_ += elements;
      if (fields_ > limits_.fields)
        return Error(absl::StrCat("more than ", limits_.fields, " fields"), begin);
    }
    return absl::OkStatus();
  }

 private:
  static absl::Status Error(absl::string_view what, size_t at) {
    return absl::InvalidArgumentError(absl::StrCat("byte ", at, ": ", what));
  }

  bool Varint(size_t* at, size_t end, uint64_t* value) const {
    *value = 0;
    for (int shift = 0; shift < 70 && *at < end; shift += 7) {
      const auto byte = static_cast<unsigned char>(bytes_[(*at)++]);
      if (shift < 64) *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  absl::string_view bytes_;
  const ProtoLimits& limits_;
  int64_t fields_ = 0;
};

}  // namespace

absl::Status CheckNumbers(const google::protobuf::Message& message, const ProtoNumbers& numbers,
                          absl::Span<const absl::string_view> except) {
  const google::protobuf::Reflection* reflection = message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (std::find(except.begin(), except.end(), field->name()) != except.end()) continue;
    const int count = field->is_repeated() ? reflection->FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      const absl::Status status = CheckValue(message, *field, field->is_repeated() ? i : -1, numbers, except);
      if (status.ok()) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          field->name(), field->is_repeated() ? absl::StrCat("[", i, "]") : "", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status ParseProto(absl::string_view bytes, const ProtoLimits& limits,
                        google::protobuf::Message& message) {
  if (static_cast<int64_t>(bytes.size()) > limits.bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(bytes.size(), " bytes; at most ", limits.bytes, " are allowed"));
  }
  RETURN_IF_ERROR(Walker(bytes, limits).Walk(message.GetDescriptor(), 0, bytes.size(), 1));
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InvalidArgumentError(absl::StrCat("not a ", message.GetDescriptor()->name()));
  }
  return absl::OkStatus();
}

}  // namespace moe
