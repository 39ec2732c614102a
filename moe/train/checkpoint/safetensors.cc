#include "moe/train/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/base/json_reader.h"
#include "moe/base/status.h"
#include "nlohmann/json.hpp"

namespace moe::train {
namespace {

using ::nlohmann::json;

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

absl::StatusOr<SafetensorsEntry> ReadEntry(const std::string& name, JsonReader* json) {
  SafetensorsEntry entry{.name = name};
  std::vector<int64_t> range;
  JsonFields fields(json);
  const auto sizes = [json](int64_t most, std::vector<int64_t>* to) {
    return json->List(most, [json, to]() -> absl::Status {
      ASSIGN_OR_RETURN(const int64_t size, json->Int(0, std::numeric_limits<int64_t>::max()));
      to->push_back(size);
      return absl::OkStatus();
    });
  };
  fields.Text("dtype", kMaxSafetensorsDType, &entry.dtype);
  fields.Value("shape", [&] { return sizes(kMaxSafetensorsRank, &entry.shape); });
  fields.Value("data_offsets", [&] { return sizes(2, &range); });
  RETURN_IF_ERROR(fields.Read(/*skip_others=*/false));
  if (range.size() != 2) return json->Error("data_offsets is not a pair [begin, end] of sizes");
  const absl::StatusOr<int64_t> bytes = SafetensorsBytes(entry.dtype, entry.shape);
  if (!bytes.ok()) return json->Error(bytes.status().message());
  if (range[1] < range[0] || range[1] - range[0] != *bytes) {
    return json->Error(absl::StrCat("data_offsets [", range[0], ", ", range[1], "] do not span the ", *bytes,
                                    " bytes of ", entry.dtype, "[", absl::StrJoin(entry.shape, ", "), "]"));
  }
  entry.offset = range[0];
  entry.bytes = *bytes;
  return entry;
}

// The members of __metadata__, which are strings.
absl::Status ReadMetadata(JsonReader* json, std::map<std::string, std::string>* metadata) {
  return json->Object([&](const std::string& key) -> absl::Status {
    if (metadata->size() >= kMaxSafetensorsMetadata) {
      return json->Error(absl::StrCat("more than ", kMaxSafetensorsMetadata, " members"));
    }
    if (json->Peek() != JsonReader::Kind::kText) {
      return json->Error(absl::StrCat("\"", key, "\" is not a string"), json->position());
    }
    ASSIGN_OR_RETURN(std::string value, json->Text(kSafetensorsLimits.string_bytes));
    if (metadata->emplace(key, std::move(value)).second) return absl::OkStatus();
    return json->Error(absl::StrCat("key \"", key, "\" occurs twice"));
  });
}

// The header: tensors in the order of the text, and metadata. Errors begin with the byte of the file.
absl::Status ReadSafetensorsHeader(absl::string_view text, std::vector<SafetensorsEntry>* entries,
                                   std::map<std::string, std::string>* metadata) {
  JsonReader json(text, kSafetensorsLimits);
  bool seen = false;
  RETURN_IF_ERROR(json.Object([&](const std::string& name) -> absl::Status {
    if (name == kMetadata) {
      if (std::exchange(seen, true)) return json.Error(absl::StrCat("key \"", name, "\" occurs twice"));
      return Annotate(ReadMetadata(&json, metadata), kMetadata);
    }
    absl::StatusOr<SafetensorsEntry> entry = ReadEntry(name, &json);
    if (!entry.ok()) return Annotate(entry.status(), absl::StrCat("tensor \"", name, "\""));
    entries->push_back(*std::move(entry));
    return absl::OkStatus();
  }));
  return json.End();
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
  if (text.size() > kMaxSafetensorsHeader) {
    return absl::InvalidArgumentError(
        absl::StrCat("a header of ", text.size(), " bytes exceeds ", kMaxSafetensorsHeader));
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
  if (n > kMaxSafetensorsHeader)
    return wrong(absl::StrCat("a header of ", n, " bytes exceeds ", kMaxSafetensorsHeader));
  if (static_cast<int64_t>(n) > size - 8) {
    return wrong(absl::StrCat("truncated: header of ", n, " bytes in a file of ", size));
  }
  std::string text(n, '\0');
  RETURN_IF_ERROR(result->file_->ReadAt(8, absl::MakeSpan(text.data(), text.size())));
  if (text.empty() || text[0] != '{') return wrong("header does not begin with '{'");
  const absl::Status read = ReadSafetensorsHeader(text, &result->entries_, &result->metadata_);
  if (!read.ok()) return wrong(absl::StrCat("header: ", read.message()));
  auto& entries = result->entries_;
  const auto by_name = [&](size_t a, size_t b) { return entries[a].name < entries[b].name; };
  std::vector<size_t> order(entries.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), by_name);
  for (size_t i = 1; i < order.size(); ++i) {
    const std::string& name = entries[order[i]].name;
    if (name == entries[order[i - 1]].name)
      return wrong(absl::StrCat("header: key \"", name, "\" occurs twice"));
  }
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
