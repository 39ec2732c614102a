// NcclWorld: ranks that have a GPU each, of one process or of many, connected by NCCL.
//
//   ASSIGN_OR_RETURN(auto world, NcclWorld::Connect(rank, num_ranks, store, host_world, {}));
//   ASSIGN_OR_RETURN(Communicator* c, world->Group({0, 1, 2, 3}, "comm", stream));
//
// Each group and channel has a NCCL communicator of its own, on the GPU of the stream; its id travels through
// the store. Forming a group does not wait for the other members, so that one thread may do it for several
// ranks; the first call does. Without a stream a group is the host world's.
//
// Order and rounding. NCCL adds in an order of its own, and rounds 16-bit floats at every hop. Sums of bf16
// and f16 among more than two ranks therefore go as an exchange of segments, a sum in f32 in ascending rank
// by Stream::Reduce, and a gather; so do reduce_scatter_v, and with `canonical_order` all reductions, which
// then have the bits of the other back ends. Otherwise sums of f32 and f64 are in NCCL's order. f8 travels
// but is not reduced.
//
// Errors. Communicators do not block: a call that NCCL does not take in time, or whose work is not done in
// time, aborts the communicator with DeadlineExceeded, naming the node, the collective, the ranks that were
// in it and those that were not, which the members tell each other through the store once it is too late.
// NCCL sees no mismatch of calls: it hangs, and the same exchange then names both (FailedPrecondition). A
// thread asks NCCL for asynchronous errors; what it finds comes out of the next call and out of Failure().
// Abort reaches the other ranks through the store, and so does a process that gives up (kAbortKey).
//
// Messages of one pair in one group must come in the same order on both sides: NCCL has no tags. A stream
// that is being captured records its collectives; what a graph then does is not watched for timeouts.
//
// All ranks must have synchronised their streams before the first world ends. The store and the host world
// outlive it. Thread-safe as World says.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "moe/comm/communicator.h"
#include "moe/comm/nccl/nccl_api.h"
#include "moe/comm/store/pulse.h"
#include "moe/comm/store/store.h"
#include "moe/comm/world.h"

namespace moe::comm {

class NcclGroup;

struct NcclOptions {
  absl::Duration timeout = absl::Seconds(60);  // of a call, from when it was given to its end
  absl::Duration connect_timeout = absl::Seconds(60);
  Pulse* pulse = nullptr;  // of the job, which outlives the world; null: pauses of others are not looked for
  bool canonical_order = false;
};

class NcclWorld : public World {
 public:
  // `host` may be null: then there are no groups without streams. Errors: those of LoadNccl.
  static absl::StatusOr<std::unique_ptr<NcclWorld>> Connect(int64_t rank, int64_t num_ranks, Store* store,
                                                            World* host, const NcclOptions& options);
  ~NcclWorld() override;
  NcclWorld(const NcclWorld&) = delete;
  NcclWorld& operator=(const NcclWorld&) = delete;

  int64_t rank() const override { return rank_; }
  int64_t num_ranks() const override { return num_ranks_; }
  // Errors beyond World's: InvalidArgument for a stream that is not CUDA's; what NCCL says of the device.
  absl::StatusOr<Communicator*> Group(absl::Span<const int64_t> ranks, absl::string_view channel,
                                      device::Stream* stream = nullptr) override;
  absl::Status Failure() override;
  absl::Status Ended() override;
  void Abort(absl::Status reason) override;

 private:
  NcclWorld(const NcclApi* nccl, int64_t rank, int64_t num_ranks, Store* store, World* host,
            const NcclOptions& options);
  absl::StatusOr<ncclUniqueId> AgreeOnId(const std::string& name);
  void AbortHere(const absl::Status& reason);
  std::vector<NcclGroup*> Groups();  // which live as long as the world
  void WatchGroups();

  const NcclApi* const nccl_;
  const int64_t rank_, num_ranks_;
  Store* const store_;
  World* const host_;
  const NcclOptions options_;
  absl::Mutex mutex_;
  std::map<std::pair<std::vector<int64_t>, std::string>, std::unique_ptr<NcclGroup>> groups_
      ABSL_GUARDED_BY(mutex_);
  absl::Status aborted_ ABSL_GUARDED_BY(mutex_);
  Cancellation stop_;
  std::thread group_watcher_, abort_watcher_;
};

}  // namespace moe::comm
