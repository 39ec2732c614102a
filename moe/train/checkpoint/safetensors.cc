#include "moe/train/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "nlohmann/json.hpp"

namespace moe::train {
namespace {

using ::nlohmann::json;

constexpr int64_t kMaxHeader = 100'000'000;
constexpr absl::string_view kMetadata = "__metadata__";

// In order of alignment, narrowest first.
struct DTypeBits {
  absl::string_view name;
  int bits;
};
constexpr DTypeBits kDTypes[] = {
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
};

int Rank(absl::string_view dtype) {
  for (int i = 0; i < static_cast<int>(std::size(kDTypes)); ++i) {
    if (kDTypes[i].name == dtype) return i;
  }
  return -1;
}

uint64_t LittleEndian64(const char* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

// Parses the header; refuses what the DOM alone would let pass: duplicate keys and deep nesting.
absl::StatusOr<json> ParseHeader(absl::string_view text) {
  std::vector<std::set<std::string>> keys;
  std::string problem;
  auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == json::parse_event_t::key) {
      if (!keys.back().insert(parsed.get<std::string>()).second && problem.empty()) {
        problem = absl::StrCat("key \"", parsed.get<std::string>(), "\" occurs twice");
      }
    }
    if (depth > 4) {
      if (problem.empty()) problem = "nested too deeply";
      return false;  // drops what is below
    }
    return true;
  };
  json header = json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (!problem.empty()) return absl::InvalidArgumentError(absl::StrCat("header: ", problem));
  if (header.is_discarded() || !header.is_object()) {
    return absl::InvalidArgumentError("header: not a JSON object in UTF-8");
  }
  return header;
}

bool IsSize(const json& value) {
  return value.is_number_unsigned() && value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX);
}

absl::StatusOr<SafetensorsEntry> ParseEntry(const std::string& name, const json& value) {
  auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\": ", what));
  };
  if (!value.is_object()) return wrong("not a JSON object");
  for (const auto& [key, unused] : value.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets")
      return wrong(absl::StrCat("unknown key ", key));
  }
  const auto dtype = value.find("dtype"), shape = value.find("shape"), range = value.find("data_offsets");
  if (dtype == value.end() || !dtype->is_string()) return wrong("dtype is not a string");
  if (shape == value.end() || !shape->is_array()) return wrong("shape is not a list");
  if (range == value.end() || !range->is_array() || range->size() != 2 || !IsSize((*range)[0]) ||
      !IsSize((*range)[1])) {
    return wrong("data_offsets is not a pair [begin, end] of sizes");
  }
  SafetensorsEntry entry{.name = name, .dtype = dtype->get<std::string>()};
  for (const json& extent : *shape) {
    if (!IsSize(extent)) return wrong("shape has an element that is not a size");
    entry.shape.push_back(extent.get<int64_t>());
  }
  const absl::StatusOr<int64_t> bytes = SafetensorsBytes(entry.dtype, entry.shape);
  if (!bytes.ok()) return wrong(bytes.status().message());
  const int64_t begin = (*range)[0].get<int64_t>(), end = (*range)[1].get<int64_t>();
  if (end < begin || end - begin != *bytes) {
    return wrong(absl::StrCat("data_offsets [", begin, ", ", end, "] do not span the ", *bytes, " bytes of ",
                              entry.dtype, "[", absl::StrJoin(entry.shape, ", "), "]"));
  }
  entry.offset = begin;
  entry.bytes = *bytes;
  return entry;
}

}  // namespace

int64_t SafetensorsBits(absl::string_view dtype) {
  const int rank = Rank(dtype);
  return rank < 0 ? 0 : kDTypes[rank].bits;
}

absl::StatusOr<int64_t> SafetensorsBytes(absl::string_view dtype, absl::Span<const int64_t> shape) {
  const int64_t bits = SafetensorsBits(dtype);
  if (bits == 0) return absl::InvalidArgumentError(absl::StrCat("unknown dtype \"", dtype, "\""));
  int64_t total = bits;
  for (int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(total, extent, &total)) {
      return absl::InvalidArgumentError(
          absl::StrCat("shape [", absl::StrJoin(shape, ", "), "] of ", dtype, " is negative or too large"));
    }
  }
  if (total % 8 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(dtype, "[", absl::StrJoin(shape, ", "), "] has ", total,
                                                   " bits, which is not whole bytes"));
  }
  return total / 8;
}

absl::StatusOr<std::vector<std::pair<SafetensorsEntry, const SafetensorsWriter::Fill*>>>
SafetensorsWriter::Layout() const {
  std::vector<std::pair<SafetensorsEntry, const Fill*>> order;
  std::set<std::string> names;
  for (const Pending& p : tensors_) {
    if (p.entry.name == kMetadata || !names.insert(p.entry.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor name \"", p.entry.name, "\" is reserved or used twice"));
    }
    const absl::StatusOr<int64_t> bytes = SafetensorsBytes(p.entry.dtype, p.entry.shape);
    if (!bytes.ok()) return Annotate(bytes.status(), absl::StrCat("tensor \"", p.entry.name, "\""));
    order.emplace_back(p.entry, &p.fill);
    order.back().first.bytes = *bytes;
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    const int rank_a = Rank(a.first.dtype), rank_b = Rank(b.first.dtype);
    return rank_a != rank_b ? rank_a > rank_b : a.first.name < b.first.name;
  });
  int64_t offset = 0;
  for (auto& [entry, fill] : order) {
    entry.offset = offset;
    offset += entry.bytes;
  }
  return order;
}

absl::StatusOr<std::string> SafetensorsWriter::Header(
    const std::map<std::string, std::string>& metadata) const {
  ASSIGN_OR_RETURN(const auto order, Layout());
  std::vector<std::string> parts;
  try {  // the JSON library throws for strings that are not UTF-8
    if (!metadata.empty()) parts.push_back(absl::StrCat("\"", kMetadata, "\":", json(metadata).dump()));
    for (const auto& [entry, fill] : order) {
      parts.push_back(absl::StrFormat("%s:{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%d,%d]}",
                                      json(entry.name).dump(), entry.dtype, absl::StrJoin(entry.shape, ","),
                                      entry.offset, entry.offset + entry.bytes));
    }
  } catch (const json::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat("a name or metadata is not UTF-8: ", e.what()));
  }
  std::string text = absl::StrCat("{", absl::StrJoin(parts, ","), "}");
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kMaxHeader) {
    return absl::InvalidArgumentError(
        absl::StrCat("a header of ", text.size(), " bytes exceeds ", kMaxHeader));
  }
  std::string header(8, '\0');
  for (int i = 0; i < 8; ++i) header[i] = static_cast<char>(static_cast<uint64_t>(text.size()) >> (8 * i));
  return header + text;
}

absl::Status SafetensorsWriter::Write(
    const std::string& path, const std::map<std::string, std::string>& metadata,
    const std::function<void(const SafetensorsEntry&, absl::Span<const char>)>& done) const {
  ASSIGN_OR_RETURN(const std::string header, Header(metadata));
  ASSIGN_OR_RETURN(const auto order, Layout());
  ASSIGN_OR_RETURN(FileWriter file, FileWriter::Create(path));
  RETURN_IF_ERROR(file.Append(header));
  std::vector<char> bytes;
  for (const auto& [entry, fill] : order) {
    bytes.assign(entry.bytes, 0);
    const absl::Status filled = (*fill)(absl::MakeSpan(bytes));
    if (!filled.ok()) return Annotate(filled, absl::StrCat("tensor \"", entry.name, "\""));
    if (done) done(entry, bytes);
    RETURN_IF_ERROR(file.Append(absl::string_view(bytes.data(), bytes.size())));
  }
  return file.Close();
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  auto result = std::unique_ptr<SafetensorsFile>(new SafetensorsFile);
  ASSIGN_OR_RETURN(result->file_, RandomAccessFile::Open(path));
  auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a valid safetensors file: ", what));
  };
  const int64_t size = result->file_->size();
  if (size < 8) return wrong(absl::StrCat("only ", size, " bytes, too short for its length field"));
  char length[8];
  RETURN_IF_ERROR(result->file_->ReadAt(0, length));
  const uint64_t n = LittleEndian64(length);
  if (n > kMaxHeader) return wrong(absl::StrCat("a header of ", n, " bytes exceeds ", kMaxHeader));
  if (static_cast<int64_t>(n) > size - 8) {
    return wrong(absl::StrCat("truncated: header of ", n, " bytes in a file of ", size));
  }
  std::string text(n, '\0');
  RETURN_IF_ERROR(result->file_->ReadAt(8, absl::MakeSpan(text.data(), text.size())));
  if (text.empty() || text[0] != '{') return wrong("header does not begin with '{'");
  absl::StatusOr<json> header = ParseHeader(text);
  if (!header.ok()) return wrong(header.status().message());

  for (const auto& [name, value] : header->items()) {
    if (name == kMetadata) {
      if (!value.is_object()) return wrong("__metadata__ is not an object");
      for (const auto& [key, item] : value.items()) {
        if (!item.is_string()) return wrong(absl::StrCat("__metadata__ \"", key, "\" is not a string"));
        result->metadata_[key] = item.get<std::string>();
      }
      continue;
    }
    absl::StatusOr<SafetensorsEntry> entry = ParseEntry(name, value);
    if (!entry.ok()) return wrong(entry.status().message());
    result->entries_.push_back(*std::move(entry));
  }
  auto& entries = result->entries_;
  std::sort(entries.begin(), entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tuple(a.offset, a.bytes, a.name) < std::tuple(b.offset, b.bytes, b.name);
  });
  int64_t end = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.offset != end) {
      return wrong(absl::StrCat("tensor \"", entry.name, "\" begins at byte ", entry.offset,
                                " of the buffer; the one before ends at ", end));
    }
    if (__builtin_add_overflow(end, entry.bytes, &end)) return wrong("sizes overflow");
  }
  const int64_t buffer = size - 8 - static_cast<int64_t>(n);
  if (end != buffer) {
    return wrong(absl::StrCat(end > buffer ? "truncated: " : "", "its tensors take ", end,
                              " bytes, the file has ", buffer, " after the header"));
  }
  for (size_t i = 0; i < entries.size(); ++i) result->by_name_[entries[i].name] = i;
  result->buffer_start_ = 8 + static_cast<int64_t>(n);
  return result;
}

const SafetensorsEntry* SafetensorsFile::Find(absl::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  return it == by_name_.end() ? nullptr : &entries_[it->second];
}

absl::StatusOr<std::string> SafetensorsFile::ReadHeader() const {
  std::string header(buffer_start_, '\0');
  RETURN_IF_ERROR(file_->ReadAt(0, absl::MakeSpan(header.data(), header.size())));
  return header;
}

absl::Status SafetensorsFile::ReadBytes(const SafetensorsEntry& entry, int64_t begin,
                                        absl::Span<char> out) const {
  const int64_t count = static_cast<int64_t>(out.size());
  if (begin < 0 || begin > entry.bytes || count > entry.bytes - begin) {
    return absl::OutOfRangeError(absl::StrCat("bytes [", begin, ", +", out.size(), ") of tensor \"",
                                              entry.name, "\", which has ", entry.bytes));
  }
  return file_->ReadAt(buffer_start_ + entry.offset + begin, out);
}

absl::Status SafetensorsFile::ReadSlice(const SafetensorsEntry& entry, absl::Span<const int64_t> offsets,
                                        absl::Span<const int64_t> extents, absl::Span<char> out) const {
  const size_t rank = entry.shape.size();
  auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(
        "slice offsets [", absl::StrJoin(offsets, ", "), "], extents [", absl::StrJoin(extents, ", "),
        "] of \"", entry.name, "\" ", entry.dtype, "[", absl::StrJoin(entry.shape, ", "), "]: ", what));
  };
  const int64_t bits = SafetensorsBits(entry.dtype);
  if (bits % 8 != 0) return wrong("elements are narrower than a byte");
  if (offsets.size() != rank || extents.size() != rank) return wrong("wrong number of dims");
  int64_t elements = 1;
  for (size_t d = 0; d < rank; ++d) {
    if (offsets[d] < 0 || extents[d] < 0 || extents[d] > entry.shape[d] ||
        offsets[d] > entry.shape[d] - extents[d]) {
      return wrong(absl::StrCat("outside in dim ", d));
    }
    elements *= extents[d];
  }
  if (static_cast<int64_t>(out.size()) != elements * bits / 8) {
    return wrong(absl::StrCat("needs ", elements * bits / 8, " bytes, was given room for ", out.size()));
  }
  if (elements == 0) return absl::OkStatus();

  // Dims from `inner` on are whole (dim `inner` itself may be cut): together they are one contiguous run.
  size_t inner = rank;
  int64_t run = bits / 8;
  while (inner > 0) {
    --inner;
    run *= extents[inner];
    if (extents[inner] != entry.shape[inner]) break;
  }
  std::vector<int64_t> stride(rank, bits / 8);
  for (size_t d = rank; d-- > 1;) stride[d - 1] = stride[d] * entry.shape[d];

  std::vector<int64_t> index(inner, 0);
  char* to = out.data();
  while (true) {
    int64_t begin = inner < rank ? offsets[inner] * stride[inner] : 0;
    for (size_t d = 0; d < inner; ++d) begin += (offsets[d] + index[d]) * stride[d];
    RETURN_IF_ERROR(ReadBytes(entry, begin, absl::MakeSpan(to, run)));
    to += run;
    size_t d = inner;
    while (d > 0 && ++index[d - 1] == extents[d - 1]) index[--d] = 0;
    if (d == 0) return absl::OkStatus();
  }
}

std::string ShardFileName(absl::string_view stem, int64_t index, int64_t count) {
  return absl::StrFormat("%s-%05d-of-%05d.safetensors", stem, index, count);
}

absl::Status CheckPlainFileName(absl::string_view name) {
  if (name.empty() || name == "." || name == ".." || absl::StrContains(name, '/') ||
      absl::StrContains(name, '\\') || absl::StrContains(name, absl::string_view("\0", 1))) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", name, "\" is not a plain file name (no folders, no \"..\", not absolute)"));
  }
  return absl::OkStatus();
}

}  // namespace moe::train
