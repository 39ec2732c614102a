// InProcessWorld: N virtual ranks in one process, the back end that implements everything and that others are
// compared with.
//
//   InProcessWorld world(4);
//   // in the thread of rank r:
//   ASSIGN_OR_RETURN(Communicator* c, world.rank(r)->Group({0, 1, 2, 3}, "comm"));
//   RETURN_IF_ERROR(c->AllReduce(x, y, n, DType::kF32, Reduction::kSum, "layers.0.attn.out"));
//
// No data is staged: a rank publishes its pointers, waits for its peers, and reads their buffers. A
// collective is done for all by the rank that comes last, so that everyone sleeps only once; a large one,
// where the gate has idle tokens, by all, each its own share (its segment of an all_reduce, then all gather).
// Either way contributions are added in ascending group rank, and the bits are the same.
//
// Waiting threads sleep and give up their ComputeGate token. A rank that waits longer than the timeout for
// its peers to enter fails with DeadlineExceeded, naming who entered which call and who never did; the group
// stays failed. Calls that do not fit together give FailedPrecondition on every member, naming both, and
// leave the group usable.
//
// With a stream, buffers are memory of its device, and the streams' own Copy and Reduce do the work, in the
// same order: ranks that share a GPU, or have GPUs that can read each other's memory. The threads of the
// ranks meet as they do without one, but do not wait for the work; events keep a rank from using a buffer too
// early.
//
// The world owns everything it gives out and outlives the threads that use it. Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "moe/comm/communicator.h"
#include "moe/comm/world.h"

namespace moe::comm {

class InProcessGroup;  // the state that the members of one group share

struct InProcessOptions {
  absl::Duration timeout = absl::Seconds(60);  // for peers to enter; InfiniteDuration to wait for ever
  // Collectives that read at most so many bytes in all members together are always done by the last rank to
  // arrive.
  int64_t small_bytes = 64 << 10;
};

class InProcessWorld {
 public:
  explicit InProcessWorld(int64_t num_ranks, InProcessOptions options = {});
  ~InProcessWorld();
  InProcessWorld(const InProcessWorld&) = delete;
  InProcessWorld& operator=(const InProcessWorld&) = delete;

  int64_t num_ranks() const { return static_cast<int64_t>(views_.size()); }
  World* rank(int64_t rank) { return views_[rank].get(); }

  // Fails all groups, those made later included.
  void Abort(absl::Status reason);

 private:
  class View;
  absl::StatusOr<Communicator*> Member(int64_t rank, absl::Span<const int64_t> ranks,
                                       absl::string_view channel, device::Stream* stream);

  const InProcessOptions options_;
  std::vector<std::unique_ptr<World>> views_;
  absl::Mutex mutex_;
  // By ranks, channel, and whether it works on streams.
  std::map<std::tuple<std::vector<int64_t>, std::string, bool>, std::unique_ptr<InProcessGroup>> groups_
      ABSL_GUARDED_BY(mutex_);
  absl::Status aborted_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moe::comm
