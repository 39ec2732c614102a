// GlooTransport: Gloo's unbound buffers with deadlines, aborts and absl::Status; what it calls of Gloo throws, and
// it does not. Gloo asks nobody who connects to it, so the connections come from ConnectPeers (peers.h).
//
// Gloo's own timeout closes all connections of the process, which its peers cannot tell from its death. So
// waits here are without limit, and an alarm wakes those that are due.
//
// Thread-safe. A Message belongs to one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "moe/comm/gloo/gloo_world.h"

namespace gloo::transport {
class Context;
class Device;
class UnboundBuffer;
}  // namespace gloo::transport

namespace moe::comm {

class GlooTransport {
 public:
  static absl::StatusOr<std::unique_ptr<GlooTransport>> Connect(int64_t rank, int64_t num_ranks, Store* store,
                                                                const GlooOptions& options);
  ~GlooTransport();

  // Memory that is sent to, or filled by, one peer at a time.
  class Message {
   public:
    Message(GlooTransport* transport, int64_t peer, void* data, int64_t bytes);
    ~Message();
    Message(Message&&) noexcept;
    // One operation at a time. Errors: Unavailable, naming the peer, if its connection is gone.
    absl::Status Send(uint64_t slot, int64_t bytes);  // the first `bytes` of the memory
    bool Receive(uint64_t slot);                      // at most all of it; false if the connection is gone
    absl::Status Lost() { return transport_->ConnectionLost(peer_); }
    // Until the operation is done. DeadlineExceeded without a text; the reason of Fail.
    absl::Status WaitSent(PeerDeadline& deadline) { return Wait(false, deadline); }
    absl::Status WaitReceived(PeerDeadline& deadline) { return Wait(true, deadline); }
    int64_t peer() const { return peer_; }

   private:
    absl::Status Wait(bool receive, PeerDeadline& deadline);
    GlooTransport* transport_;
    int64_t peer_;
    std::unique_ptr<gloo::transport::UnboundBuffer> buffer_;
  };

  // Whether the connection to some rank is gone. Costs a little memory each time.
  bool LostSome();
  // Ends all waits, now and later, with this status.
  void Fail(absl::Status reason);
  absl::Status failed() const;
  const GlooOptions& options() const { return options_; }
  PeerDeadline Deadline() const { return PeerDeadline(options_.timeout, options_.pulse); }

 private:
  struct Pending {
    gloo::transport::UnboundBuffer* buffer;
    bool receive;
    bool timed_out = false, interrupted = false;
  };
  GlooTransport(Store* store, const GlooOptions& options, int64_t rank, int64_t num_ranks)
      : store_(store), options_(options), rank_(rank), num_ranks_(num_ranks) {}
  absl::Status ConnectionLost(int64_t peer);
  static void Interrupt(Pending& p);

  Store* const store_;
  const GlooOptions options_;
  const int64_t rank_, num_ranks_;
  std::shared_ptr<gloo::transport::Device> device_;
  std::shared_ptr<gloo::transport::Context> context_;
  mutable absl::Mutex mutex_;
  std::vector<Pending*> pending_ ABSL_GUARDED_BY(mutex_);
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moe::comm
