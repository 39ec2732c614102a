// A Store in a folder that all processes see (NFS will do): one file a key, written beside and renamed, so a
// value is whole or absent. Get looks again every 50 ms at most. Use a fresh folder for each run: what an
// earlier one left would be taken for this one's.
//
//   ASSIGN_OR_RETURN(auto store, DirectoryStore::Open("/shared/job7"));
//
// Thread-safe; any number of processes.
#pragma once

#include <memory>
#include <string>

#include "moe/comm/store/store.h"

namespace moe::comm {

class DirectoryStore : public Store {
 public:
  // Makes the folder if it is not there.
  static absl::StatusOr<std::unique_ptr<DirectoryStore>> Open(const std::string& path);
  absl::Status Set(absl::string_view key, absl::string_view value) override;
  absl::StatusOr<bool> SetOnce(absl::string_view key, absl::string_view value) override;
  absl::StatusOr<std::string> Get(absl::string_view key, absl::Duration timeout,
                                  Cancellation* cancel = nullptr) override;
  std::string Describe() const override { return "the folder " + path_; }

 private:
  explicit DirectoryStore(std::string path) : path_(std::move(path)) {}
  std::string FileOf(absl::string_view key) const;
  const std::string path_;
};

}  // namespace moe::comm
