// Files and folders, with absl::Status instead of errno, and writes that are whole or not there at all.
//
//   ASSIGN_OR_RETURN(std::string text, ReadFile("/etc/model.textproto"));
//   RETURN_IF_ERROR(WriteFile(JoinPath(run_dir, "plan.txt"), text));      // temporary file, fsync, rename
//
//   ASSIGN_OR_RETURN(AtomicFolder folder, AtomicFolder::Create("runs/7/checkpoint"));
//   RETURN_IF_ERROR(WriteFile(JoinPath(folder.path(), "manifest.json"), manifest));
//   RETURN_IF_ERROR(folder.Commit());                                     // readers see all of it, or nothing
//
// Modes of new files and folders follow the umask. Every error names the path and what the system said. The
// functions are safe to call from several threads on different paths; FileWriter and AtomicFolder belong to
// one thread at a time, RandomAccessFile to any number.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace moe {

// "a" + "b" -> "a/b"; an absolute second path stands for itself; an empty first one vanishes.
std::string JoinPath(absl::string_view a, absl::string_view b);

bool FileExists(const std::string& path);  // a regular file (or a link to one)
bool IsFolder(const std::string& path);

// What a file that is read whole may have, where the format has no bound of its own.
inline constexpr int64_t kMaxFileBytes = int64_t{64} << 20;

// The whole file. NotFound if there is none, InvalidArgument above `max_bytes` (before anything is read, where the system
// knows the size) or for a folder.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes = kMaxFileBytes);

// Replaces `path` as a whole: a reader sees the old contents or the new ones, also after a crash.
absl::Status WriteFile(const std::string& path, absl::string_view contents);

// mkdir -p. Fine if it is there already; an error if something else than a folder is in the way.
absl::Status MakeFolders(const std::string& path);

// rm -r. Fine if there is nothing. Does not follow links.
absl::Status RemoveTree(const std::string& path);

// Names in a folder, sorted, without "." and "..".
absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& path);

// A file being written from its start. Destroying an unclosed writer leaves what was written so far,
// unsynced.
class FileWriter {
 public:
  // Creates or truncates; with `append`, continues at the end.
  static absl::StatusOr<FileWriter> Create(const std::string& path, bool append = false);
  FileWriter(FileWriter&& other) noexcept;
  FileWriter& operator=(FileWriter&& other) noexcept;
  ~FileWriter();

  absl::Status Append(absl::string_view bytes);
  int64_t bytes_written() const { return bytes_written_; }
  absl::Status Close(bool sync = true);  // with `sync`, returns only when the bytes are on the disk

 private:
  FileWriter(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_ = -1;
  int64_t bytes_written_ = 0;
};

// A file read at given places.
class RandomAccessFile {
 public:
  static absl::StatusOr<std::unique_ptr<RandomAccessFile>> Open(const std::string& path);
  ~RandomAccessFile();
  RandomAccessFile(const RandomAccessFile&) = delete;
  RandomAccessFile& operator=(const RandomAccessFile&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // when it was opened
  // Fills all of `out`. OutOfRange if the file ends before.
  absl::Status ReadAt(int64_t offset, absl::Span<char> out) const;

 private:
  RandomAccessFile(std::string path, int fd, int64_t size) : path_(std::move(path)), fd_(fd), size_(size) {}
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
};

// A folder that appears at its final path all at once. Files are written into path(), a temporary folder
// beside it; Commit() syncs them and renames. Destroyed without Commit(), it leaves nothing behind.
class AtomicFolder {
 public:
  // Creates the parents of `final_path` and the temporary folder. An existing folder at `final_path` is
  // replaced, by an atomic exchange, only in Commit().
  static absl::StatusOr<AtomicFolder> Create(const std::string& final_path);
  AtomicFolder(AtomicFolder&& other) noexcept;
  AtomicFolder& operator=(AtomicFolder&&) = delete;
  ~AtomicFolder();

  const std::string& path() const { return temporary_; }
  absl::Status Commit();

 private:
  AtomicFolder(std::string final_path, std::string temporary)
      : final_(std::move(final_path)), temporary_(std::move(temporary)) {}
  std::string final_, temporary_;  // temporary_ is empty once committed or moved from
};

}  // namespace moe
