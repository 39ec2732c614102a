#include "moe/base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"

namespace moe {
namespace {

absl::Status SystemError(absl::string_view what, const std::string& path, int error = errno) {
  const std::string message = absl::StrCat("cannot ", what, " ", path, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(message);
    case ENOTDIR:
    case EISDIR:
    case ENAMETOOLONG:
      return absl::InvalidArgumentError(message);
    default:
      return absl::FailedPreconditionError(message);
  }
}

std::string Parent(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// A name beside `path` that nothing has. `make` creates it, and gives -1 with errno as the system's calls do.
// Modes follow the umask that way; those of mkstemp and mkdtemp do not.
template <typename Make>
absl::StatusOr<std::string> CreateBeside(const std::string& path, absl::string_view what, Make make) {
  constexpr absl::string_view kLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
  constexpr int kTries = 100;
  thread_local std::mt19937_64 random(std::random_device{}());
  for (int i = 0; i < kTries; ++i) {
    std::string name = absl::StrCat(path, ".tmp.");
    for (int c = 0; c < 6; ++c) name += kLetters[random() % kLetters.size()];
    if (make(name.c_str()) >= 0) return name;
    if (errno != EEXIST) break;
  }
  return SystemError(absl::StrCat("create a ", what, " for"), path);
}

absl::Status SyncFolder(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return SystemError("open folder", path);
  const int result = ::fsync(fd), error = errno;
  ::close(fd);
  // Some file systems cannot sync a folder; they order renames by themselves.
  if (result != 0 && error != EINVAL && error != ENOTSUP) return SystemError("sync folder", path, error);
  return absl::OkStatus();
}

// Syncs every file and folder below `path`.
absl::Status SyncTree(const std::string& path) {
  ASSIGN_OR_RETURN(std::vector<std::string> names, ListFolder(path));
  for (const std::string& name : names) {
    const std::string child = JoinPath(path, name);
    if (IsFolder(child)) {
      RETURN_IF_ERROR(SyncTree(child));
      continue;
    }
    const int fd = ::open(child.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return SystemError("open", child);
    const int result = ::fsync(fd), error = errno;
    ::close(fd);
    if (result != 0) return SystemError("sync", child, error);
  }
  return SyncFolder(path);
}

}  // namespace

std::string JoinPath(absl::string_view a, absl::string_view b) {
  if (a.empty() || (!b.empty() && b[0] == '/')) return std::string(b);
  if (b.empty()) return std::string(a);
  return a.back() == '/' ? absl::StrCat(a, b) : absl::StrCat(a, "/", b);
}

bool FileExists(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

bool IsFolder(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return SystemError("open", path);
  const auto too_large = [&] {
    ::close(fd);
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is larger than the ", max_bytes, " bytes allowed here"));
  };
  std::string contents;
  struct stat info;
  if (::fstat(fd, &info) == 0 && S_ISREG(info.st_mode)) {
    if (info.st_size > max_bytes) return too_large();
    contents.reserve(info.st_size);
  }
  std::vector<char> block(1 << 20);
  while (true) {
    const ssize_t got = ::read(fd, block.data(), block.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      const int error = errno;
      ::close(fd);
      return SystemError("read", path, error);
    }
    if (got == 0) break;
    if (static_cast<int64_t>(contents.size()) + got > max_bytes) return too_large();
    contents.append(block.data(), got);
  }
  ::close(fd);
  return contents;
}

absl::Status WriteFile(const std::string& path, absl::string_view contents) {
  int fd = -1;
  ASSIGN_OR_RETURN(const std::string temporary, CreateBeside(path, "file", [&](const char* name) {
                     return fd = ::open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
                   }));
  ::close(fd);
  absl::Status status = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(FileWriter writer, FileWriter::Create(temporary));
    RETURN_IF_ERROR(writer.Append(contents));
    RETURN_IF_ERROR(writer.Close());
    if (::rename(temporary.c_str(), path.c_str()) != 0) return SystemError("rename to", path);
    return SyncFolder(Parent(path));
  }();
  if (!status.ok()) ::unlink(temporary.c_str());
  return status;
}

absl::Status MakeFolders(const std::string& path) {
  if (path.empty() || IsFolder(path)) return absl::OkStatus();
  const std::string parent = Parent(path);
  if (parent != path) RETURN_IF_ERROR(MakeFolders(parent));
  if (::mkdir(path.c_str(), 0777) != 0) {
    const int error = errno;
    if (error == EEXIST && IsFolder(path)) return absl::OkStatus();  // someone else was faster
    return SystemError("create folder", path, error);
  }
  return absl::OkStatus();
}

absl::Status RemoveTree(const std::string& path) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0)
    return errno == ENOENT ? absl::OkStatus() : SystemError("look at", path);
  if (!S_ISDIR(info.st_mode))
    return ::unlink(path.c_str()) == 0 ? absl::OkStatus() : SystemError("remove", path);
  ASSIGN_OR_RETURN(std::vector<std::string> names, ListFolder(path));
  for (const std::string& name : names) RETURN_IF_ERROR(RemoveTree(JoinPath(path, name)));
  return ::rmdir(path.c_str()) == 0 ? absl::OkStatus() : SystemError("remove folder", path);
}

absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& path) {
  DIR* folder = ::opendir(path.c_str());
  if (folder == nullptr) return SystemError("list folder", path);
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(folder)) {
    const absl::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  ::closedir(folder);
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<FileWriter> FileWriter::Create(const std::string& path, bool append) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | (append ? O_APPEND : O_TRUNC), 0666);
  if (fd < 0) return SystemError("write", path);
  return FileWriter(path, fd);
}

FileWriter::FileWriter(FileWriter&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      bytes_written_(other.bytes_written_) {}

FileWriter& FileWriter::operator=(FileWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(bytes_written_, other.bytes_written_);
  return *this;
}

FileWriter::~FileWriter() {
  if (fd_ >= 0) ::close(fd_);
}

absl::Status FileWriter::Append(absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(fd_, bytes.data(), std::min<size_t>(bytes.size(), size_t{1} << 30));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return SystemError("write", path_);
    bytes.remove_prefix(put);
    bytes_written_ += put;
  }
  return absl::OkStatus();
}

absl::Status FileWriter::Close(bool sync) {
  const int fd = std::exchange(fd_, -1);
  if (fd < 0) return absl::OkStatus();
  if (sync && ::fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP) {  // a pipe cannot be synced
    const int error = errno;
    ::close(fd);
    return SystemError("sync", path_, error);
  }
  return ::close(fd) == 0 ? absl::OkStatus() : SystemError("close", path_);
}

absl::StatusOr<std::unique_ptr<RandomAccessFile>> RandomAccessFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return SystemError("open", path);
  struct stat info;
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  }
  return std::unique_ptr<RandomAccessFile>(new RandomAccessFile(path, fd, info.st_size));
}

RandomAccessFile::~RandomAccessFile() { ::close(fd_); }

absl::Status RandomAccessFile::ReadAt(int64_t offset, absl::Span<char> out) const {
  while (!out.empty()) {
    const ssize_t got = ::pread(fd_, out.data(), std::min<size_t>(out.size(), size_t{1} << 30), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return SystemError("read", path_);
    if (got == 0) {
      return absl::OutOfRangeError(absl::StrCat(path_, " ends at byte ", offset, ", ", out.size(),
                                                " bytes before what is to be read"));
    }
    out.remove_prefix(got);
    offset += got;
  }
  return absl::OkStatus();
}

absl::StatusOr<AtomicFolder> AtomicFolder::Create(const std::string& final_path) {
  std::string path = final_path;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  if (path.empty()) return absl::InvalidArgumentError("a folder needs a path");
  RETURN_IF_ERROR(MakeFolders(Parent(path)));
  ASSIGN_OR_RETURN(std::string temporary, CreateBeside(path, "temporary folder",
                                                       [](const char* name) { return ::mkdir(name, 0777); }));
  return AtomicFolder(std::move(path), std::move(temporary));
}

AtomicFolder::AtomicFolder(AtomicFolder&& other) noexcept
    : final_(std::move(other.final_)), temporary_(std::exchange(other.temporary_, "")) {}

AtomicFolder::~AtomicFolder() {
  if (!temporary_.empty()) RemoveTree(temporary_).IgnoreError();
}

absl::Status AtomicFolder::Commit() {
  RETURN_IF_ERROR(SyncTree(temporary_));
  if (::rename(temporary_.c_str(), final_.c_str()) == 0) {
    temporary_.clear();
    return SyncFolder(Parent(final_));
  }
  if (errno != ENOTEMPTY && errno != EEXIST) return SystemError("rename a folder to", final_);
  // Something is there: exchange, so that at no time there is nothing, then drop the old one.
  if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, final_.c_str(), RENAME_EXCHANGE) != 0) {
    if (errno != EINVAL && errno != ENOSYS) return SystemError("exchange a folder with", final_);
    const std::string old = absl::StrCat(temporary_, ".old");  // the file system cannot exchange
    if (::rename(final_.c_str(), old.c_str()) != 0) return SystemError("move away", final_);
    if (::rename(temporary_.c_str(), final_.c_str()) != 0) {
      const int error = errno;
      ::rename(old.c_str(), final_.c_str());
      return SystemError("rename a folder to", final_, error);
    }
    temporary_ = old;
  }
  RETURN_IF_ERROR(SyncFolder(Parent(final_)));
  return RemoveTree(std::exchange(temporary_, ""));
}

}  // namespace moe
