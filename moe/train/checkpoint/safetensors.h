// safetensors files: tensors by name, read and written without copying the file through memory.
//
// Layout: u64 little-endian N | N bytes of JSON | buffer. The JSON maps a tensor's name to its dtype, shape
// and [begin, end) in the buffer, and "__metadata__" to strings. Tensors are row-major, packed, without gaps.
//
//   SafetensorsWriter writer;
//   writer.Add({"w", "F32", {2, 3}}, [&](absl::Span<char> out) { ...; return absl::OkStatus(); });
//   RETURN_IF_ERROR(writer.Write("model.safetensors", {{"format", "pt"}}));
//
//   ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open("model.safetensors"));
//   RETURN_IF_ERROR(file->ReadSlice(*file->Find("w"), {0, 1}, {2, 2}, out));   // the last two columns
//
// Files are untrusted: Open checks every length, offset, shape and dtype against the size of the file and the
// limits below; its errors say which tensor is wrong, how, and at which byte of the header. An open file may be read from several threads.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/base/file.h"
#include "moe/base/json_reader.h"

namespace moe::train {

// What a file may hold at most. The format says the first; the others keep what is built in proportion to it.
inline constexpr int64_t kMaxSafetensorsHeader = 100'000'000;  // bytes
inline constexpr int64_t kMaxSafetensorsRank = 64;
inline constexpr int64_t kMaxSafetensorsDType = 16;        // characters
inline constexpr int64_t kMaxSafetensorsMetadata = 65536;  // members of __metadata__
inline constexpr JsonLimits kSafetensorsLimits = {
    .bytes = kMaxSafetensorsHeader, .values = 20'000'000, .string_bytes = 16 << 20, .depth = 3};

// Bits of one element of "F32", "BF16", "F4", ...; 0 for a dtype that the format does not know.
int64_t SafetensorsBits(absl::string_view dtype);
// Bytes of a packed tensor. InvalidArgument for an unknown dtype, a negative or overflowing size, or a number
// of bits that does not fill whole bytes.
absl::StatusOr<int64_t> SafetensorsBytes(absl::string_view dtype, absl::Span<const int64_t> shape);

struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;     // {}: a scalar; zero extents are legal
  int64_t offset = 0, bytes = 0;  // within the buffer; a writer computes them
};

class SafetensorsWriter {
 public:
  // Writes exactly the tensor's bytes into the span it is given.
  using Fill = std::function<absl::Status(absl::Span<char> bytes)>;
  void Add(SafetensorsEntry entry, Fill fill) { tensors_.push_back({std::move(entry), std::move(fill)}); }

  // The header: entries by dtype (widest alignment first), then name; padded with spaces to a multiple of 8.
  absl::StatusOr<std::string> Header(const std::map<std::string, std::string>& metadata) const;

  // Header and tensors, synced; holds one tensor in memory at a time. `done`, if given, sees each tensor's
  // bytes after they are filled. A failed write leaves a partial file: write into an AtomicFolder, or remove
  // it.
  absl::Status Write(
      const std::string& path, const std::map<std::string, std::string>& metadata = {},
      const std::function<void(const SafetensorsEntry&, absl::Span<const char>)>& done = {}) const;

 private:
  struct Pending {
    SafetensorsEntry entry;
    Fill fill;
  };
  // Pointers in the order of the file, offsets set in the copies of the entries.
  absl::StatusOr<std::vector<std::pair<SafetensorsEntry, const Fill*>>> Layout() const;
  std::vector<Pending> tensors_;
};

class SafetensorsFile {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  const std::string& path() const { return file_->path(); }
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // by offset
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const SafetensorsEntry* Find(absl::string_view name) const;  // null if there is none

  // The length field and the header, as they are in the file.
  absl::StatusOr<std::string> ReadHeader() const;
  // `count` bytes from byte `begin` of the tensor.
  absl::Status ReadBytes(const SafetensorsEntry& entry, int64_t begin, absl::Span<char> out) const;
  // The box [offsets, offsets + extents), packed row-major into `out`, whose size must be the box's bytes.
  // Reads only the rows it needs. Only for dtypes of whole bytes.
  absl::Status ReadSlice(const SafetensorsEntry& entry, absl::Span<const int64_t> offsets,
                         absl::Span<const int64_t> extents, absl::Span<char> out) const;

 private:
  SafetensorsFile() = default;
  std::unique_ptr<RandomAccessFile> file_;
  int64_t buffer_start_ = 0;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, size_t, std::less<>> by_name_;
  std::map<std::string, std::string> metadata_;
};

// "model-00001-of-00003.safetensors"
std::string ShardFileName(absl::string_view stem, int64_t index, int64_t count);
// An untrusted name of a file inside a folder: no separators, no "..", not absolute, not empty.
absl::Status CheckPlainFileName(absl::string_view name);

}  // namespace moe::train
