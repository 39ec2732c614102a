#include "moe/comm/store/redis_store.h"

#include <hiredis/hiredis.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "moe/base/status.h"

namespace moe::comm {
namespace {

constexpr absl::string_view kSecondsToLive = "86400";

}  // namespace

RedisStore::RedisStore(std::string host, int port, std::string job)
    : host_(std::move(host)), port_(port), job_(std::move(job)) {}

RedisStore::~RedisStore() {
  absl::MutexLock lock(&mutex_);
  if (redis_ != nullptr) redisFree(redis_);
}

std::string RedisStore::Describe() const { return absl::StrCat("redis ", host_, ":", port_); }
std::string RedisStore::Name(absl::string_view key) const {
  return absl::StrCat("switchyard/", job_, "/", key);
}

absl::StatusOr<std::unique_ptr<RedisStore>> RedisStore::Connect(const std::string& host, int port,
                                                                const std::string& job,
                                                                const std::string& password,
                                                                absl::Duration timeout) {
  RETURN_IF_ERROR(Annotate(CheckStoreEntry(job, ""), "the name of the job"));
  std::unique_ptr<RedisStore> store(new RedisStore(host, port, job));
  const absl::Time deadline = absl::Now() + timeout;
  {
    absl::MutexLock lock(&store->mutex_);
    for (;;) {
      store->redis_ = redisConnectWithTimeout(
          host.c_str(), port,
          absl::ToTimeval(std::clamp(deadline - absl::Now(), absl::Milliseconds(100), absl::Seconds(5))));
      if (store->redis_ != nullptr && store->redis_->err == 0) break;
      const std::string why = store->redis_ == nullptr ? "no memory" : store->redis_->errstr;
      if (store->redis_ != nullptr) redisFree(store->redis_);
      store->redis_ = nullptr;
      if (absl::Now() + absl::Milliseconds(100) >= deadline) {
        return absl::UnavailableError(absl::StrCat("cannot reach ", store->Describe(), ": ", why));
      }
      absl::SleepFor(absl::Milliseconds(100));
    }
    redisSetTimeout(store->redis_, absl::ToTimeval(absl::Seconds(5)));
  }
  if (!password.empty()) RETURN_IF_ERROR(store->Ask({"AUTH", password}).status());
  RETURN_IF_ERROR(store->Ask({"PING"}).status());
  return store;
}

absl::StatusOr<RedisStore::Reply> RedisStore::Ask(std::initializer_list<absl::string_view> words) {
  std::vector<const char*> text;
  std::vector<size_t> bytes;
  for (absl::string_view w : words) {
    text.push_back(w.data());
    bytes.push_back(w.size());
  }
  absl::MutexLock lock(&mutex_);
  if (redis_ == nullptr) return absl::UnavailableError(absl::StrCat(Describe(), ": the connection is lost"));
  auto* answer = static_cast<redisReply*>(
      redisCommandArgv(redis_, static_cast<int>(text.size()), text.data(), bytes.data()));
  if (answer == nullptr) {
    const absl::Status lost = absl::UnavailableError(absl::StrCat(Describe(), ": ", redis_->errstr));
    redisFree(redis_);
    redis_ = nullptr;
    return lost;
  }
  Reply reply;
  absl::Status status;
  switch (answer->type) {
    case REDIS_REPLY_NIL:
      break;
    case REDIS_REPLY_STATUS:
    case REDIS_REPLY_STRING:
      reply.kind = answer->type == REDIS_REPLY_STATUS ? Reply::kStatus : Reply::kString;
      reply.text.assign(answer->str, answer->len);
      break;
    case REDIS_REPLY_ERROR: {
      const absl::string_view said(answer->str, answer->len);
      const bool denied = absl::StrContains(said, "NOAUTH") || absl::StrContains(said, "WRONGPASS") ||
                          absl::StrContains(said, "AUTH");
      status =
          absl::Status(denied ? absl::StatusCode::kPermissionDenied : absl::StatusCode::kFailedPrecondition,
                       absl::StrCat(Describe(), ": ", said));
      break;
    }
    default:
      status = absl::InternalError(absl::StrCat(Describe(), " answers with type ", answer->type));
  }
  freeReplyObject(answer);
  if (!status.ok()) return status;
  return reply;
}

absl::Status RedisStore::Set(absl::string_view key, absl::string_view value) {
  RETURN_IF_ERROR(CheckStoreEntry(key, value));
  return Ask({"SET", Name(key), value, "EX", kSecondsToLive}).status();
}

absl::StatusOr<bool> RedisStore::SetOnce(absl::string_view key, absl::string_view value) {
  RETURN_IF_ERROR(CheckStoreEntry(key, value));
  ASSIGN_OR_RETURN(const Reply reply, Ask({"SET", Name(key), value, "EX", kSecondsToLive, "NX"}));
  return reply.kind == Reply::kStatus;
}

absl::StatusOr<std::string> RedisStore::Get(absl::string_view key, absl::Duration timeout,
                                            Cancellation* cancel) {
  RETURN_IF_ERROR(CheckStoreEntry(key, ""));
  return PollStore(*this, key, timeout, cancel, [&]() -> absl::StatusOr<std::string> {
    ASSIGN_OR_RETURN(Reply reply, Ask({"GET", Name(key)}));
    if (reply.kind != Reply::kString) return absl::NotFoundError("");
    return std::move(reply.text);
  });
}

}  // namespace moe::comm
