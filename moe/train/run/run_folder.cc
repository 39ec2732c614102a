#include "moe/train/run/run_folder.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "nlohmann/json.hpp"

namespace moe::train {
namespace {

constexpr int64_t kMostRecord = 4096;  // bytes of a record that are looked at

std::string LockOf(const std::string& folder) { return JoinPath(folder, ".lock"); }

// Who holds a folder.
struct Holder {
  std::string host;
  int64_t process = 0;
  int64_t started = 0;  // when the process was, in clock ticks since its host was: process ids come back
  std::string since;    // of the claim, for people
};

std::string HostName() {
  char name[256] = {};
  return ::gethostname(name, sizeof(name) - 1) == 0 ? name : "an unnamed host";
}

// When a process of this host was started; nothing if there is none. (proc(5), /proc/pid/stat, field 22.)
std::optional<int64_t> StartOf(int64_t process) {
  const absl::StatusOr<std::string> stat = ReadFile(absl::StrCat("/proc/", process, "/stat"), kMostRecord);
  if (!stat.ok()) return std::nullopt;
  // The name, in parentheses, may have any characters; state is the field after it.
  const size_t name = stat->rfind(')');
  if (name == std::string::npos) return std::nullopt;
  const std::vector<absl::string_view> fields =
      absl::StrSplit(absl::string_view(*stat).substr(name + 1), ' ', absl::SkipEmpty());
  int64_t started = 0;
  if (fields.size() < 20 || fields[0] == "Z" || !absl::SimpleAtoi(fields[19], &started)) return std::nullopt;
  return started;
}

std::string RecordOfThisProcess() {
  return nlohmann::ordered_json(
             {{"host", HostName()},
              {"process", ::getpid()},
              {"started", StartOf(::getpid()).value_or(0)},
              {"since", absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::Now(), absl::LocalTimeZone())}})
             .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) +
         "\n";
}

// Nothing if the file has no record, or half of one.
std::optional<Holder> ReadRecord(int lock) {
  std::string text(kMostRecord, '\0');
  const ssize_t got = ::pread(lock, text.data(), text.size(), 0);
  const nlohmann::json json =
      nlohmann::json::parse(text.substr(0, std::max<ssize_t>(0, got)), nullptr, false);
  if (!json.is_object()) return std::nullopt;
  const auto number = [&](const char* key) {
    return json.contains(key) && json[key].is_number_integer() ? json[key].get<int64_t>() : 0;
  };
  const auto text_of = [&](const char* key) {
    return json.contains(key) && json[key].is_string() ? json[key].get<std::string>() : "";
  };
  return Holder{text_of("host"), number("process"), number("started"), text_of("since")};
}

absl::Status WriteRecord(int lock, const std::string& folder) {
  const std::string record = RecordOfThisProcess();
  if (::ftruncate(lock, 0) == 0 &&
      ::pwrite(lock, record.data(), record.size(), 0) == static_cast<ssize_t>(record.size())) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("cannot write ", LockOf(folder), ": ", std::strerror(errno)));
}

absl::Status Held(const std::string& folder, const std::optional<Holder>& by) {
  std::string who = "another process";
  if (by) who = absl::StrCat("process ", by->process, " on host ", by->host);
  std::string text = absl::StrCat("the run directory ", folder, " is in use: ", who, " trains in it");
  if (by) absl::StrAppend(&text, " since ", by->since);
  if (by && by->host != HostName()) {
    absl::StrAppend(&text, ".\nWhether that process lives cannot be seen from host ", HostName(),
                    ". If it does not, take the folder over: remove ", LockOf(folder), " and start again");
  } else {
    absl::StrAppend(&text, ". Wait until it ends, or choose another --run_dir");
  }
  return absl::AlreadyExistsError(text);
}

// Whether the process that a record names may still be there, for one who has got the lock.
bool MayLive(const Holder& holder, LockReach reach) {
  if (reach == LockReach::kEverybody) return false;
  if (holder.host != HostName()) return true;
  return reach == LockReach::kNobody && holder.process != ::getpid() &&
         StartOf(holder.process) == holder.started;
}

// Folders that are missing on the way to `path`, the innermost first.
std::vector<std::string> MissingFolders(std::string path) {
  std::vector<std::string> missing;
  while (!path.empty() && path != "/" && !IsFolder(path)) {
    missing.push_back(path);
    const size_t slash = path.find_last_of('/');
    path = slash == std::string::npos ? "" : path.substr(0, slash);
  }
  return missing;
}

void RemoveEmpty(const std::vector<std::string>& folders) {
  for (const std::string& f : folders) {
    if (::rmdir(f.c_str()) != 0 && errno != ENOENT) return;
  }
}

bool SameFile(int file, const std::string& path) {
  struct stat open, there;
  return ::fstat(file, &open) == 0 && ::stat(path.c_str(), &there) == 0 && open.st_dev == there.st_dev &&
         open.st_ino == there.st_ino;
}

}  // namespace

LockReach LockReachOf(const std::string& folder) {
  struct statfs info;
  if (::statfs(folder.c_str(), &info) != 0) return LockReach::kHost;
  // statfs(2): ext, XFS, Btrfs, tmpfs, overlayfs, F2FS, ZFS.
  for (const uint32_t local :
       {0xef53u, 0x58465342u, 0x9123683eu, 0x01021994u, 0x794c7630u, 0xf2f52010u, 0x2fc12fc1u}) {
    if (static_cast<uint32_t>(info.f_type) == local) return LockReach::kEverybody;
  }
  return LockReach::kHost;
}

absl::StatusOr<RunFolder> RunFolder::Claim(const std::string& path, std::optional<LockReach> known) {
  const std::vector<std::string> made = MissingFolders(path);
  const std::string name = LockOf(path);
  constexpr char kAdvice[] = "the run directory cannot be written; choose another with --run_dir";
  constexpr int kTries = 20;  // another process may give its claim back at the same time, and remove both
  for (int i = 0; i < kTries; ++i) {
    RETURN_IF_ERROR(Annotate(MakeFolders(path), kAdvice));
    const int lock = ::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (lock < 0 && errno == ENOENT) continue;
    if (lock < 0) {
      const int error = errno;
      RemoveEmpty(made);
      return absl::FailedPreconditionError(
          absl::StrCat(kAdvice, ": cannot open ", name, ": ", std::strerror(error)));
    }
    LockReach reach = known.value_or(LockReachOf(path));
    if (reach != LockReach::kNobody && ::flock(lock, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) {
        std::optional<Holder> holder;
        // It may not have written its record yet.
        for (int tries = 0; tries < 10 && !(holder = ReadRecord(lock)); ++tries) {
          absl::SleepFor(absl::Milliseconds(20));
        }
        ::close(lock);
        return Held(path, holder);
      }
      reach = LockReach::kNobody;  // the file system has none
    }
    if (!SameFile(lock, name)) {
      ::close(lock);
      continue;
    }
    const std::optional<Holder> left = ReadRecord(lock);
    if (left && MayLive(*left, reach)) {
      ::close(lock);
      return Held(path, left);
    }
    const absl::Status written = WriteRecord(lock, path);
    if (!written.ok()) {
      ::unlink(name.c_str());
      ::close(lock);
      RemoveEmpty(made);
      return Annotate(written, kAdvice);
    }
    return RunFolder(path, lock, made);
  }
  return absl::UnavailableError(
      absl::StrCat("the run directory ", path, " is claimed and given back by other processes all the time"));
}

absl::StatusOr<RunFolder> RunFolder::ClaimNew(const std::string& base) {
  std::string path = base;
  for (int i = 2;; ++i) {
    if (!IsFolder(path)) {
      absl::StatusOr<RunFolder> folder = Claim(path);
      // Whoever was quicker made it meanwhile.
      if (folder.ok() ? folder->made_.size() > 0 : !absl::IsAlreadyExists(folder.status())) return folder;
    }
    path = absl::StrCat(base, "-", i);
  }
}

RunFolder::RunFolder(std::string path, int lock, std::vector<std::string> made)
    : path_(std::move(path)), lock_(lock), made_(std::move(made)) {}

RunFolder::RunFolder(RunFolder&& other) noexcept
    : path_(std::move(other.path_)), lock_(std::exchange(other.lock_, -1)), made_(std::move(other.made_)) {}

RunFolder::~RunFolder() {
  if (lock_ < 0) return;
  // The name goes before the lock does, so nobody finds the record of a run that has ended.
  const std::string name = LockOf(path_);
  if (SameFile(lock_, name)) ::unlink(name.c_str());
  ::close(lock_);
  RemoveEmpty(made_);
}

}  // namespace moe::train
