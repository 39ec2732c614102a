// RecordedWorld: a World that remembers, for each communicator, the call that runs or ran last, with its
// number. The records of all ranks together show which rank waits for which: the k-th call of a communicator
// is the same call on all of its members.
//
//   RecordedWorld world(in_process.rank(3));
//   ... the rank uses `world` ...
//   for (const RecordedCall& c : world.Calls()) { ... }          // from any thread, also while the rank hangs
//
// The inner world outlives it. Thread-safe as World is; calls allocate nothing.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "moe/comm/communicator.h"
#include "moe/comm/world.h"

namespace moe::comm {

struct RecordedCall {
  enum State { kRunning, kDone, kFailed };
  std::vector<int64_t> ranks;  // of the group
  std::string channel;
  std::string op, what;  // "all_to_all", "layers.2.moe %d = comm.all_to_all"
  int64_t number = 0;    // of this communicator, from 1
  State state = kDone;
  double seconds = 0;  // since it began, or in a call that is over, that it took
  double ago = 0;      // since it ended; 0 if it runs

  // Still in it, or left it with an error: then its peers are what it waited for.
  bool Waits() const { return state != kDone; }
};

class RecordedWorld : public World {
 public:
  explicit RecordedWorld(World* inner);
  ~RecordedWorld() override;
  int64_t rank() const override { return inner_->rank(); }
  int64_t num_ranks() const override { return inner_->num_ranks(); }
  absl::StatusOr<Communicator*> Group(absl::Span<const int64_t> ranks, absl::string_view channel,
                                      device::Stream* stream = nullptr) override;
  absl::Status Failure() override { return inner_->Failure(); }
  absl::Status Ended() override { return inner_->Ended(); }
  void Abort(absl::Status reason) override { inner_->Abort(std::move(reason)); }

  // Of every communicator that was called at all; by channel and group.
  std::vector<RecordedCall> Calls() const;

 private:
  class Recorded;
  World* const inner_;
  mutable absl::Mutex mutex_;
  std::map<std::pair<std::string, std::vector<int64_t>>, std::unique_ptr<Recorded>> groups_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace moe::comm
