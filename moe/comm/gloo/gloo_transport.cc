#include "moe/comm/gloo/gloo_transport.h"

#include <gloo/transport/context.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/running_time.h"
#include "moe/base/status.h"
#include "moe/comm/compute_gate.h"
#include "moe/comm/gloo/adopted_pair.h"
#include "moe/comm/gloo/peers.h"

namespace moe::comm {
namespace {

// No limit of Gloo's own; longer ones overflow its clock.
constexpr std::chrono::hours kForever(24 * 365);
// For Gloo to connect to its own process, five times as long as is said here.
constexpr std::chrono::seconds kOwnConnection(4);

}  // namespace

absl::StatusOr<std::unique_ptr<GlooTransport>> GlooTransport::Connect(int64_t rank, int64_t num_ranks,
                                                                      Store* store,
                                                                      const GlooOptions& options) {
  std::unique_ptr<GlooTransport> t(new GlooTransport(store, options, rank, num_ranks));
  ASSIGN_OR_RETURN(Peers peers,
                   ConnectPeers(rank, num_ranks, store, options.address, options.connect_timeout));
  try {
    const auto device = AdoptingDevice();
    t->device_ = device;
    t->context_ = device->createContext(static_cast<int>(rank), static_cast<int>(num_ranks));
    t->context_->setTimeout(kOwnConnection);
    for (int64_t p = 0; p < num_ranks; ++p) {
      if (p == rank) continue;
      AdoptPair(*device, *t->context_, static_cast<int>(p), std::exchange(peers.sockets[p], -1));
    }
  } catch (const std::exception& e) {
    return absl::UnavailableError(absl::StrCat("rank ", rank, " cannot use its connections: ", e.what()));
  }
  return t;
}

GlooTransport::~GlooTransport() {
  context_.reset();
  device_.reset();
}

bool GlooTransport::LostSome() {
  constexpr uint64_t kNobodySends = ~uint64_t{0};
  for (int64_t p = 0; p < num_ranks_; ++p) {
    char byte;
    if (p != rank_ && !Message(this, p, &byte, 1).Receive(kNobodySends)) return true;
  }
  return false;
}

absl::Status GlooTransport::failed() const {
  absl::MutexLock lock(&mutex_);
  return failed_;
}

void GlooTransport::Interrupt(Pending& p) {
  p.interrupted = true;
  if (p.receive) {
    p.buffer->abortWaitRecv();
  } else {
    p.buffer->abortWaitSend();
  }
}

void GlooTransport::Fail(absl::Status reason) {
  absl::MutexLock lock(&mutex_);
  if (!failed_.ok()) return;
  failed_ = std::move(reason);
  for (Pending* p : pending_) Interrupt(*p);
}

absl::Status GlooTransport::ConnectionLost(int64_t peer) {
  // A peer that ended because of an error has said so before it closed its connections.
  RETURN_IF_ERROR(failed());
  const absl::StatusOr<std::string> said = store_->Get(kAbortKey, absl::Milliseconds(200));
  absl::Status status =
      said.ok() ? absl::AbortedError(*said)
                : absl::UnavailableError(absl::StrCat(
                      "lost the connection to rank ", peer, "; its process has ended or its host is gone",
                      absl::IsDeadlineExceeded(said.status()) ? "" : "; ",
                      absl::IsDeadlineExceeded(said.status()) ? "" : said.status().message()));
  Fail(status);
  return failed();
}

GlooTransport::Message::Message(GlooTransport* transport, int64_t peer, void* data, int64_t bytes)
    : transport_(transport),
      peer_(peer),
      buffer_(transport->context_->createUnboundBuffer(data, static_cast<size_t>(bytes))) {}

GlooTransport::Message::~Message() = default;
GlooTransport::Message::Message(Message&&) noexcept = default;

absl::Status GlooTransport::Message::Send(uint64_t slot, int64_t bytes) {
  try {
    buffer_->send(static_cast<int>(peer_), slot, 0, static_cast<size_t>(bytes));
  } catch (const std::exception&) {
    return transport_->ConnectionLost(peer_);
  }
  return absl::OkStatus();
}

bool GlooTransport::Message::Receive(uint64_t slot) {
  try {
    buffer_->recv(static_cast<int>(peer_), slot, 0, buffer_->size);
  } catch (const std::exception&) {
    return false;
  }
  return true;
}

absl::Status GlooTransport::Message::Wait(bool receive, PeerDeadline& deadline) {
  for (;;) {
    Pending p = {buffer_.get(), receive};
    {
      absl::MutexLock lock(&transport_->mutex_);
      if (!transport_->failed_.ok()) return transport_->failed_;
      transport_->pending_.push_back(&p);
    }
    bool done = false, lost = false;
    try {
      const Alarm alarm(deadline.at(), [&] {
        absl::MutexLock lock(&transport_->mutex_);
        p.timed_out = true;
        if (!p.interrupted) Interrupt(p);
      });
      done = receive ? buffer_->waitRecv(nullptr, kForever) : buffer_->waitSend(nullptr, kForever);
    } catch (const std::exception&) {
      lost = true;
    }
    {
      absl::MutexLock lock(&transport_->mutex_);
      std::erase(transport_->pending_, &p);
    }
    if (lost) return transport_->ConnectionLost(peer_);
    if (done) return absl::OkStatus();
    if (p.timed_out && !deadline.Extend()) return absl::DeadlineExceededError("");
    // Otherwise the world has failed, or an interruption was left over from a wait that had just ended.
  }
}

}  // namespace moe::comm
