#include "moe/comm/gloo/gloo_transport.h"

#include <gloo/transport/context.h>
#include <gloo/transport/device.h>
#include <gloo/transport/tcp/attr.h>
#include <gloo/transport/unbound_buffer.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/running_time.h"
#include "moe/base/status.h"
#include "moe/comm/compute_gate.h"

namespace gloo::transport::tcp {
// From gloo/transport/tcp/device.h, which includes headers that are not installed.
std::shared_ptr<::gloo::transport::Device> CreateDevice(const struct attr&);
}  // namespace gloo::transport::tcp

namespace moe::comm {
namespace {

// No limit of Gloo's own; longer ones overflow its clock.
constexpr std::chrono::hours kForever(24 * 365);

std::string AddressKey(int64_t rank) { return absl::StrCat("gloo/", rank); }

}  // namespace

absl::StatusOr<std::unique_ptr<GlooTransport>> GlooTransport::Connect(int64_t rank, int64_t num_ranks,
                                                                      Store* store,
                                                                      const GlooOptions& options) {
  std::unique_ptr<GlooTransport> t(new GlooTransport(store, options, rank, num_ranks));
  // Every rank connects to those below it as they connect to it; all have published where they listen before.
  const absl::Duration deadline = RunningTime() + options.connect_timeout;
  std::string addresses;  // what rank p connects to, for each p in turn
  size_t each = 0;
  try {
    t->device_ = gloo::transport::tcp::CreateDevice(gloo::transport::tcp::attr(options.address.c_str()));
    t->context_ = t->device_->createContext(static_cast<int>(rank), static_cast<int>(num_ranks));
    // Gloo waits five times as long for a connection.
    t->context_->setTimeout(std::chrono::milliseconds(std::max<int64_t>(
        1, std::min(absl::ToInt64Milliseconds(options.connect_timeout / 5), int64_t{3600000}))));
    for (int64_t p = 0; p < num_ranks; ++p) {
      if (p == rank) continue;
      const std::vector<char> bytes = t->context_->createPair(static_cast<int>(p))->address().bytes();
      each = bytes.size();
      addresses.append(bytes.begin(), bytes.end());
    }
  } catch (const std::exception& e) {
    return absl::UnavailableError(
        absl::StrCat("rank ", rank, " cannot listen at ", options.address, ": ", e.what()));
  }
  RETURN_IF_ERROR(store->Set(AddressKey(rank), addresses));
  std::vector<int64_t> missing;
  for (int64_t p = 0; p < num_ranks; ++p) {
    if (p == rank) continue;
    // Once somebody is missing, the others are only asked for.
    const absl::Duration left =
        missing.empty() ? std::max(deadline - RunningTime(), absl::ZeroDuration()) : absl::ZeroDuration();
    const absl::StatusOr<std::string> theirs = GetUnlessAborted(store, AddressKey(p), left);
    if (absl::IsDeadlineExceeded(theirs.status())) {
      missing.push_back(p);
      continue;
    }
    RETURN_IF_ERROR(theirs.status());
    if (!missing.empty()) continue;
    const size_t at = static_cast<size_t>(rank < p ? rank : rank - 1) * each;
    if (theirs->size() != addresses.size()) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", p, " is of another job or build: it published ", theirs->size(),
                       " bytes of addresses, not ", addresses.size()));
    }
    try {
      t->context_->getPair(static_cast<int>(p))
          ->connect(std::vector<char>(theirs->begin() + at, theirs->begin() + at + each));
    } catch (const std::exception& e) {
      return absl::UnavailableError(absl::StrCat("rank ", rank, " at ", options.address,
                                                 " cannot connect to rank ", p, ": ", e.what()));
    }
  }
  if (!missing.empty()) {
    return absl::DeadlineExceededError(absl::StrCat(
        "rank ", rank, " waited ", absl::FormatDuration(options.connect_timeout), " for ", num_ranks,
        " ranks to meet at ", store->Describe(), "; missing: ", absl::StrJoin(missing, ", ")));
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
