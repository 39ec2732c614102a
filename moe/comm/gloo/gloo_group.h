// GlooGroup: the communicator of one rank in one group and channel, see gloo_world.h.
//
// A collective of n members: each sends each other a Header with what it calls, and its contribution if that
// is small; all compare; large contributions follow, each straight to where it belongs. The receive of the
// next header is posted as soon as the last one has been read, so headers never wait for the receiver.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/comm/call.h"
#include "moe/comm/gloo/gloo_transport.h"

namespace moe::comm {

class GlooGroup : public Communicator {
 public:
  // `id`: below 2^40, the same on all members and of no other group of the world.
  GlooGroup(GlooTransport* transport, std::vector<int64_t> ranks, int me, uint64_t id);
  ~GlooGroup() override;

  int rank() const override { return me_; }
  int size() const override { return static_cast<int>(ranks_.size()); }
  absl::Status Run(const Call& call) override;
  void Abort(absl::Status reason) override;

 private:
  struct Header;
  struct Peer;
  // A block of memory that goes to, or comes from, a member.
  struct Block {
    const void* from = nullptr;
    void* to = nullptr;
    int64_t send_bytes = 0, receive_bytes = 0;
  };
  absl::Status Collective(const Call& call);
  absl::Status Exchange(const Call& message);
  absl::Status ExchangeHeaders(const Call& call, PeerDeadline& deadline);
  absl::Status Compare(const Call& call);
  absl::Status Move(const Call& call, int slot, bool inlined, PeerDeadline& deadline);
  absl::Status Explain(const absl::Status& status, const Call& call, const char* doing, int64_t peer,
                       const PeerDeadline& deadline);
  void LayOut(const Call& call);
  void FillHeader(const Call& call, int peer, Header* h) const;
  Call CallOf(const Header& h, const Call& mine) const;
  void PostHeader(Peer& peer);
  char* Scratch(int64_t bytes);
  uint64_t Slot(int kind, int64_t tag = 0) const;

  GlooTransport* const transport_;
  const std::vector<int64_t> ranks_;
  const int me_;
  const uint64_t id_;
  std::vector<std::unique_ptr<Peer>> peers_;  // by member; null for this one
  std::vector<Block> blocks_;                 // by member, of the call that runs
  std::vector<const void*> inputs_;           // of a reduction, by member
  std::vector<std::unique_ptr<GlooTransport::Message>> moving_;
  std::vector<char> scratch_;
  uint64_t sequence_ = 0;  // calls so far
  absl::Status failed_;    // timed out or aborted: for good
};

}  // namespace moe::comm
