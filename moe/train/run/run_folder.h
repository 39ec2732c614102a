// RunFolder: a run's claim on its folder. From the claim on until it is given back, no other run trains there.
//
//   ASSIGN_OR_RETURN(RunFolder folder, RunFolder::Claim("runs/mine"));   // AlreadyExists: says who has it
//   ... everything that may refuse the run ...
//   folder.Keep();                                                      // from here on there is something in it
//   RETURN_IF_ERROR(WriteFile(JoinPath(folder.path(), "config.textproto"), text));
//
// The claim is a lock on the file .lock (flock), which the system gives back when the process ends, however it
// ends; and in that file a record of the process that holds it, for whoever is refused. A record that is left
// over is disregarded where the lock proves that its process is gone. Where locks do not reach other hosts, the
// record of another host stands until somebody removes the file, and the error says so.
//
// One thread at a time.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moe::train {

// Whom a lock on a file keeps out.
enum class LockReach {
  kNobody,    // the file system has none: the record alone decides
  kHost,      // processes of this host, and perhaps others
  kEverybody  // the file system belongs to this host
};
LockReach LockReachOf(const std::string& folder);

class RunFolder {
 public:
  // Makes the folder, with its parents, and claims it. AlreadyExists if another process holds it.
  // `known`: what its locks do, where that should not be asked of the file system.
  static absl::StatusOr<RunFolder> Claim(const std::string& path, std::optional<LockReach> known = {});
  // A folder that did not exist: `base`, or else `base`-2, `base`-3, ...
  static absl::StatusOr<RunFolder> ClaimNew(const std::string& base);
  RunFolder(RunFolder&& other) noexcept;
  RunFolder& operator=(RunFolder&&) = delete;
  ~RunFolder();  // gives the claim back; without Keep(), folders that it made and that are empty vanish

  const std::string& path() const { return path_; }
  void Keep() { made_.clear(); }

 private:
  RunFolder(std::string path, int lock, std::vector<std::string> made);

  std::string path_;
  int lock_ = -1;                  // of the open file; -1: moved from
  std::vector<std::string> made_;  // folders, the innermost first
};

}  // namespace moe::train
