#include "moe/comm/store/store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/running_time.h"
#include "moe/base/status.h"

namespace moe::comm {

void Cancellation::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  for (const auto& [id, wake] : hooks_) wake();
}

bool Cancellation::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

bool Cancellation::SleepFor(absl::Duration d) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&cancelled_), d);
}

Cancellation::Hook::Hook(Cancellation* c, std::function<void()> wake) : cancellation_(c) {
  if (c == nullptr) return;
  absl::MutexLock lock(&c->mutex_);
  if (c->cancelled_) wake();
  id_ = c->next_id_++;
  c->hooks_[id_] = std::move(wake);
}

Cancellation::Hook::~Hook() {
  if (cancellation_ == nullptr) return;
  absl::MutexLock lock(&cancellation_->mutex_);
  cancellation_->hooks_.erase(id_);
}

absl::Status CheckStoreEntry(absl::string_view key, absl::string_view value) {
  const bool printable =
      std::all_of(key.begin(), key.end(), [](char c) { return c > 32 && c < 127 && c != '\\'; });
  if (key.empty() || key.size() > kMaxStoreKey || !printable || key.front() == '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("a key of the store has 1 to ", kMaxStoreKey, " printable characters, no blank"));
  }
  if (value.size() > kMaxStoreValue) {
    return absl::InvalidArgumentError(absl::StrCat("a value of ", value.size(), " bytes for key ", key,
                                                   "; the store takes ", kMaxStoreValue, " at most"));
  }
  return absl::OkStatus();
}

absl::Status StoreTimeout(const Store& store, absl::string_view key, absl::Duration timeout) {
  return absl::DeadlineExceededError(absl::StrCat("'", key, "' did not appear in ", store.Describe(),
                                                  " within ", absl::FormatDuration(timeout)));
}

void AnnounceAbort(Store* store, int64_t rank, const absl::Status& reason) {
  const std::string text = absl::StrCat("rank ", rank, " ended the run: ", reason.ToString());
  store->SetOnce(kAbortKey, absl::string_view(text).substr(0, kMaxStoreValue)).IgnoreError();
}

absl::Status AwaitAbort(Store* store, Cancellation* stop) {
  while (!stop->cancelled()) {
    const absl::StatusOr<std::string> text = store->Get(kAbortKey, absl::Seconds(30), stop);
    if (text.ok()) return absl::AbortedError(*text);
    if (!absl::IsDeadlineExceeded(text.status()) && !absl::IsCancelled(text.status())) {
      return absl::UnavailableError(
          absl::StrCat("the rendezvous at ", store->Describe(), " is gone: ", text.status().message()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> GetUnlessAborted(Store* store, absl::string_view key, absl::Duration timeout) {
  const absl::Duration deadline = RunningTime() + timeout;
  for (;;) {
    const absl::Duration left = std::max(deadline - RunningTime(), absl::ZeroDuration());
    absl::StatusOr<std::string> value = store->Get(key, std::min(left, absl::Milliseconds(500)));
    if (value.ok() || !absl::IsDeadlineExceeded(value.status())) return value;
    const absl::StatusOr<std::string> abort = store->Get(kAbortKey, absl::ZeroDuration());
    if (abort.ok()) return absl::AbortedError(*abort);
    if (left <= absl::Milliseconds(500)) return StoreTimeout(*store, key, timeout);
  }
}

absl::Status MemoryStore::Set(absl::string_view key, absl::string_view value) {
  RETURN_IF_ERROR(CheckStoreEntry(key, value));
  absl::MutexLock lock(&mutex_);
  values_[std::string(key)] = std::string(value);
  changed_.SignalAll();
  return absl::OkStatus();
}

absl::StatusOr<bool> MemoryStore::SetOnce(absl::string_view key, absl::string_view value) {
  RETURN_IF_ERROR(CheckStoreEntry(key, value));
  absl::MutexLock lock(&mutex_);
  const bool stored = values_.emplace(std::string(key), std::string(value)).second;
  changed_.SignalAll();
  return stored;
}

absl::StatusOr<std::string> MemoryStore::Get(absl::string_view key, absl::Duration timeout,
                                             Cancellation* cancel) {
  const absl::Duration deadline = RunningTime() + timeout;
  bool cancelled = false;
  // Cancel holds its own lock when it calls this, and nobody takes that one while holding mutex_.
  Cancellation::Hook hook(cancel, [&] {
    absl::MutexLock lock(&mutex_);
    cancelled = true;
    changed_.SignalAll();
  });
  absl::MutexLock lock(&mutex_);
  for (;;) {
    const auto it = values_.find(key);
    if (it != values_.end()) return it->second;
    if (cancelled) return absl::CancelledError("the wait was cancelled");
    if (RunningTime() >= deadline) return StoreTimeout(*this, key, timeout);
    changed_.WaitWithTimeout(&mutex_, deadline - RunningTime());
  }
}

}  // namespace moe::comm
