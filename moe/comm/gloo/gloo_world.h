// GlooWorld: ranks in several processes, on one host or many, connected by Gloo's TCP transport.
//
//   ASSIGN_OR_RETURN(auto world, GlooWorld::Connect(rank, num_ranks, store, {.address = "10.0.0.7"}));
//   ASSIGN_OR_RETURN(Communicator* c, world->Group({0, 1, 2, 3}, "comm"));
//
// Of Gloo only the transport is used: its unbound buffers, which match messages by number, over one connection for
// each pair of ranks. The ends of a connection have shown each other that they belong to the job (peers.h), and
// nobody can connect once all have; what goes over it is neither encrypted nor signed. Groups and channels are numbers over these connections and cost nothing to make.
// The collectives are this project's: contributions are gathered and added in ascending group rank, so
// results equal those of the in-process back end to the bit.
//
// Every collective begins with a header from each member to each other, which carries small contributions at
// once. From the headers all members see whether their calls fit together (FailedPrecondition, naming both),
// and after the timeout who entered and who did not (DeadlineExceeded). A peer whose process ended gives
// Unavailable, naming it. Abort reaches the other ranks through the store, under kAbortKey.
//
// The store outlives the world. Owns its threads: Gloo's, and one that watches for
// the errors of others. Gloo allocates as it sends; besides, steps allocate nothing.
#pragma once

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
#include "moe/comm/store/pulse.h"
#include "moe/comm/store/store.h"
#include "moe/comm/world.h"

namespace moe::comm {

class GlooGroup;
class GlooTransport;

struct GlooOptions {
  std::string address = "127.0.0.1";           // numeric, of this process, where its peers reach it
  absl::Duration timeout = absl::Seconds(60);  // for peers to enter a call
  absl::Duration connect_timeout = absl::Seconds(60);
  Pulse* pulse = nullptr;  // of the job, which outlives the world; null: pauses of others are not looked for
  int64_t eager_bytes = 2048;  // contributions of at most so many bytes travel with the header
};

class GlooWorld : public World {
 public:
  // All ranks connect at the same time. Errors name the ranks that did not come, or the address.
  static absl::StatusOr<std::unique_ptr<GlooWorld>> Connect(int64_t rank, int64_t num_ranks, Store* store,
                                                            const GlooOptions& options);
  ~GlooWorld() override;
  GlooWorld(const GlooWorld&) = delete;
  GlooWorld& operator=(const GlooWorld&) = delete;

  int64_t rank() const override { return rank_; }
  int64_t num_ranks() const override { return num_ranks_; }
  absl::StatusOr<Communicator*> Group(absl::Span<const int64_t> ranks, absl::string_view channel,
                                      device::Stream* stream = nullptr) override;
  absl::Status Ended() override;
  // Whether the connection to some rank is gone: its process has ended.
  bool LostSome();
  void Abort(absl::Status reason) override;

 private:
  GlooWorld(int64_t rank, int64_t num_ranks, Store* store, const GlooOptions& options);

  const int64_t rank_, num_ranks_;
  Store* const store_;
  const GlooOptions options_;
  std::unique_ptr<GlooTransport> transport_;
  absl::Mutex mutex_;
  std::map<std::pair<std::vector<int64_t>, std::string>, std::unique_ptr<GlooGroup>> groups_
      ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, std::string> ids_ ABSL_GUARDED_BY(mutex_);  // which group has which number
  Cancellation stop_;
  std::thread watcher_;
};

}  // namespace moe::comm
