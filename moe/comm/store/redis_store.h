// A Store in a Redis server, under keys that begin with "switchyard/<job>/". They expire after a day.
//
//   ASSIGN_OR_RETURN(auto store, RedisStore::Connect("10.0.0.5", 6379, "job7", password, absl::Seconds(10)));
//
// One connection, which calls take in turn; Get asks again every 50 ms at most. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "moe/comm/store/store.h"

struct redisContext;

namespace moe::comm {

class RedisStore : public Store {
 public:
  // `password` may be empty. Unavailable naming the address; PermissionDenied for a wrong password.
  static absl::StatusOr<std::unique_ptr<RedisStore>> Connect(const std::string& host, int port,
                                                             const std::string& job,
                                                             const std::string& password,
                                                             absl::Duration timeout);
  ~RedisStore() override;
  absl::Status Set(absl::string_view key, absl::string_view value) override;
  absl::StatusOr<bool> SetOnce(absl::string_view key, absl::string_view value) override;
  absl::StatusOr<std::string> Get(absl::string_view key, absl::Duration timeout,
                                  Cancellation* cancel = nullptr) override;
  std::string Describe() const override;

 private:
  struct Reply {
    enum Kind { kNil, kStatus, kString } kind = kNil;
    std::string text;
  };
  RedisStore(std::string host, int port, std::string job);
  absl::StatusOr<Reply> Ask(std::initializer_list<absl::string_view> words);
  std::string Name(absl::string_view key) const;

  const std::string host_;
  const int port_;
  const std::string job_;
  absl::Mutex mutex_;
  redisContext* redis_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace moe::comm
