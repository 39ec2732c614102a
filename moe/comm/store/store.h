// Store: a small key-value service through which the processes of one job find each other. It carries
// addresses, the ids of NCCL communicators, the first error of a run and what each rank did last: little and
// seldom.
//
//   RETURN_IF_ERROR(store->Set("gloo/3", address));
//   ASSIGN_OR_RETURN(std::string peer, store->Get("gloo/4", absl::Seconds(60)));   // waits until it is there
//
// Keys are short printable names, values are any bytes of at most kMaxStoreValue. Thread-safe.
// Implementations: MemoryStore (one process), TcpStore (kept by a StoreServer, of rank 0 or of what started the
// processes).
#pragma once

#include <functional>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace moe::comm {

inline constexpr size_t kMaxStoreKey = 256;
inline constexpr size_t kMaxStoreValue = 1 << 20;

// Ends waits from another thread, once and for all.
class Cancellation {
 public:
  void Cancel();
  bool cancelled() const;

  // Runs `wake` at Cancel, at once if that was before, while the object lives.
  class Hook {
   public:
    Hook(Cancellation* c, std::function<void()> wake);  // c may be null
    ~Hook();
    Hook(const Hook&) = delete;
    Hook& operator=(const Hook&) = delete;

   private:
    Cancellation* const cancellation_;
    int id_ = 0;
  };
  // True if it was cancelled before the time was over.
  bool SleepFor(absl::Duration d);

 private:
  mutable absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  int next_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<int, std::function<void()>> hooks_ ABSL_GUARDED_BY(mutex_);
};

class Store {
 public:
  virtual ~Store() = default;
  virtual absl::Status Set(absl::string_view key, absl::string_view value) = 0;
  // False, and nothing is changed, if the key has a value: of several that try, one succeeds.
  virtual absl::StatusOr<bool> SetOnce(absl::string_view key, absl::string_view value) = 0;
  // Waits until the key has a value. DeadlineExceeded if it has none in time (0: now), Cancelled,
  // Unavailable if the store is gone.
  virtual absl::StatusOr<std::string> Get(absl::string_view key, absl::Duration timeout,
                                          Cancellation* cancel = nullptr) = 0;
  // "10.0.0.1:29500 (run by rank 0)"; for messages.
  virtual std::string Describe() const = 0;
};

// InvalidArgument for what no store takes.
absl::Status CheckStoreEntry(absl::string_view key, absl::string_view value);
absl::Status StoreTimeout(const Store& store, absl::string_view key, absl::Duration timeout);

// The first error of a run, by whoever met it: "rank 3 ended the run: UNAVAILABLE: ...".
inline constexpr char kAbortKey[] = "abort";
// Gives the run up, if nobody has before. Best effort: without the store the others see connections close.
void AnnounceAbort(Store* store, int64_t rank, const absl::Status& reason);
// Waits until the run is given up: Aborted with that error; Unavailable if the store is gone. OK once `stop`.
absl::Status AwaitAbort(Store* store, Cancellation* stop);
// As Get; Aborted with that error as soon as there is one.
absl::StatusOr<std::string> GetUnlessAborted(Store* store, absl::string_view key, absl::Duration timeout);

class MemoryStore : public Store {
 public:
  absl::Status Set(absl::string_view key, absl::string_view value) override;
  absl::StatusOr<bool> SetOnce(absl::string_view key, absl::string_view value) override;
  absl::StatusOr<std::string> Get(absl::string_view key, absl::Duration timeout,
                                  Cancellation* cancel = nullptr) override;
  std::string Describe() const override { return "this process"; }

 private:
  absl::Mutex mutex_;
  absl::CondVar changed_;
  std::map<std::string, std::string, std::less<>> values_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moe::comm
