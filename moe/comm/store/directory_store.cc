#include "moe/comm/store/directory_store.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "moe/base/file.h"
#include "moe/base/status.h"

namespace moe::comm {

absl::StatusOr<std::unique_ptr<DirectoryStore>> DirectoryStore::Open(const std::string& path) {
  if (path.empty() || absl::StrContains(path, "://")) {
    return absl::InvalidArgumentError(
        absl::StrCat("a rendezvous is a folder that all processes see; got '", path, "'"));
  }
  RETURN_IF_ERROR(Annotate(MakeFolders(path), "the folder of the rendezvous"));
  return std::unique_ptr<DirectoryStore>(new DirectoryStore(path));
}

// '/' is the one character of a key that a file name cannot have; backslashes are in no key. A file name is
// never "." or "..", nor one of the temporary ones.
std::string DirectoryStore::FileOf(absl::string_view key) const {
  return JoinPath(path_, absl::StrCat("key-", absl::StrReplaceAll(key, {{"/", "\\"}})));
}

absl::Status DirectoryStore::Set(absl::string_view key, absl::string_view value) {
  RETURN_IF_ERROR(CheckStoreEntry(key, value));
  return WriteFile(FileOf(key), value);
}

absl::StatusOr<bool> DirectoryStore::SetOnce(absl::string_view key, absl::string_view value) {
  RETURN_IF_ERROR(CheckStoreEntry(key, value));
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  const std::string file = FileOf(key);
  const std::string mine =
      JoinPath(path_, absl::StrCat("once-", host, "-", getpid(), "-", reinterpret_cast<uintptr_t>(&mine)));
  RETURN_IF_ERROR(WriteFile(mine, value));
  const bool stored = link(mine.c_str(), file.c_str()) == 0;
  const int error = errno;
  unlink(mine.c_str());
  if (stored || error == EEXIST) return stored;
  return absl::UnavailableError(absl::StrCat("cannot create ", file, ": ", std::strerror(error)));
}

absl::StatusOr<std::string> DirectoryStore::Get(absl::string_view key, absl::Duration timeout,
                                                Cancellation* cancel) {
  RETURN_IF_ERROR(CheckStoreEntry(key, ""));
  const std::string file = FileOf(key);
  const absl::Time deadline = absl::Now() + timeout;
  absl::Duration pause = absl::Milliseconds(2);
  for (;;) {
    absl::StatusOr<std::string> value = ReadFile(file, kMaxStoreValue);
    if (!value.ok() && !IsFolder(path_)) {
      return absl::UnavailableError(absl::StrCat("the folder ", path_, " of the rendezvous is gone"));
    }
    if (value.ok() || !absl::IsNotFound(value.status())) return value;
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return StoreTimeout(*this, key, timeout);
    const absl::Duration nap = std::min(pause, left);
    if (cancel == nullptr) {
      absl::SleepFor(nap);
    } else if (cancel->SleepFor(nap)) {
      return absl::CancelledError("the wait was cancelled");
    }
    pause = std::min(pause * 2, absl::Milliseconds(50));
  }
}

}  // namespace moe::comm
