#include "moe/comm/gloo/peers.h"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "moe/base/running_time.h"
#include "moe/base/status.h"
#include "moe/comm/store/secured_socket.h"

namespace moe::comm {
namespace {

constexpr char kPurpose[] = "ranks";

constexpr absl::Duration kLook = absl::Milliseconds(500);  // whether somebody gave up

std::string AddressKey(int64_t rank) { return absl::StrCat("ranks/", rank); }

// The port of one rank while it waits for those above it.
class OpenPort {
 public:
  OpenPort(std::unique_ptr<SocketLoop> loop, int64_t rank, int64_t num_ranks, const std::string& token)
      : rank_(rank),
        num_ranks_(num_ranks),
        loop_(std::move(loop)),
        listener_(*loop_, {.secret = {token, kPurpose}},
                  [this](std::unique_ptr<Socket> socket, uint64_t who) { Add(std::move(socket), who); }) {}
  ~OpenPort() {
    loop_->Quit();
    loop_->Join();
  }
  absl::Status Open(const std::string& address) {
    RETURN_IF_ERROR(listener_.Open({.host = address}));
    return loop_->Start();
  }
  int port() const { return listener_.port(); }
  // Whether all above this rank have come.
  bool WaitForAll(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    const auto all = [this] {
      mutex_.AssertReaderHeld();
      return static_cast<int64_t>(come_.size()) == num_ranks_ - 1 - rank_;
    };
    return mutex_.AwaitWithTimeout(absl::Condition(&all), timeout);
  }
  // Those that have come, by rank.
  std::map<int64_t, std::unique_ptr<Socket>> Take() {
    absl::MutexLock lock(&mutex_);
    return std::exchange(come_, {});
  }

 private:
  void Add(std::unique_ptr<Socket> socket, uint64_t who) {
    absl::MutexLock lock(&mutex_);
    const int64_t from = static_cast<int64_t>(who);
    if (from > rank_ && from < num_ranks_) come_.insert_or_assign(from, std::move(socket));
  }

  const int64_t rank_, num_ranks_;
  const std::unique_ptr<SocketLoop> loop_;
  SecuredListener listener_;
  absl::Mutex mutex_;
  std::map<int64_t, std::unique_ptr<Socket>> come_ ABSL_GUARDED_BY(mutex_);
};

// What a rank publishes: "10.0.0.7 41234 <secret>".
absl::Status ParseEntry(const std::string& entry, int64_t peer, SocketAddress* address, Secret* secret) {
  const std::vector<std::string> parts = absl::StrSplit(entry, ' ');
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[1], &address->port)) {
    return absl::FailedPreconditionError(absl::StrCat("rank ", peer, " is of another build: it published '",
                                                      absl::CHexEscape(entry.substr(0, 40)), "'"));
  }
  address->host = parts[0];
  *secret = {parts[2], kPurpose};
  return absl::OkStatus();
}

absl::Status GivenUp(Store* store) {
  const absl::StatusOr<std::string> abort = store->Get(kAbortKey, absl::ZeroDuration());
  return abort.ok() ? absl::AbortedError(*abort) : absl::OkStatus();
}

absl::Status Missing(int64_t rank, int64_t num_ranks, const Store& store, absl::Duration timeout,
                     const std::vector<int64_t>& missing) {
  return absl::DeadlineExceededError(absl::StrCat("rank ", rank, " waited ", absl::FormatDuration(timeout),
                                                  " for ", num_ranks, " ranks to meet at ", store.Describe(),
                                                  "; missing: ", absl::StrJoin(missing, ", ")));
}

}  // namespace

Peers::~Peers() {
  for (const int socket : sockets) {
    if (socket >= 0) close(socket);
  }
}

absl::StatusOr<Peers> ConnectPeers(int64_t rank, int64_t num_ranks, Store* store, const std::string& address,
                                   absl::Duration timeout) {
  const absl::Duration deadline = RunningTime() + timeout;
  const auto left = [&] { return std::max(deadline - RunningTime(), absl::ZeroDuration()); };
  const std::string token = absl::BytesToHexString(RandomBytes(32));
  ASSIGN_OR_RETURN(std::unique_ptr<SocketLoop> listening, SocketLoop::Create());
  ASSIGN_OR_RETURN(const std::unique_ptr<SocketLoop> dialing, SocketLoop::Create());
  OpenPort port(std::move(listening), rank, num_ranks, token);
  RETURN_IF_ERROR(Annotate(port.Open(address), absl::StrCat("rank ", rank)));
  RETURN_IF_ERROR(store->Set(AddressKey(rank), absl::StrCat(address, " ", port.port(), " ", token)));
  // Every rank connects to those below it as they wait for it.
  Peers peers;
  peers.sockets.assign(num_ranks, -1);
  std::vector<int64_t> missing;
  for (int64_t p = 0; p < num_ranks; ++p) {
    if (p == rank) continue;
    // Once somebody is missing, the others are only asked for.
    const absl::StatusOr<std::string> theirs =
        GetUnlessAborted(store, AddressKey(p), missing.empty() ? left() : absl::ZeroDuration());
    if (absl::IsDeadlineExceeded(theirs.status())) {
      missing.push_back(p);
      continue;
    }
    RETURN_IF_ERROR(theirs.status());
    if (p > rank || !missing.empty()) continue;
    SocketAddress at;
    Secret secret;
    RETURN_IF_ERROR(ParseEntry(*theirs, p, &at, &secret));
    absl::StatusOr<std::unique_ptr<Socket>> socket = absl::UnavailableError("");
    do {
      RETURN_IF_ERROR(GivenUp(store));
      socket = Dial(*dialing, {at}, secret, static_cast<uint64_t>(rank), std::min(left(), kLook));
    } while (absl::IsUnavailable(socket.status()) && left() > absl::ZeroDuration());
    RETURN_IF_ERROR(
        Annotate(socket.status(), absl::StrCat("rank ", rank, " at ", address, " cannot connect to rank ", p,
                                               " at ", AddressText(at))));
    ASSIGN_OR_RETURN(peers.sockets[p], (*socket)->Release());
  }
  if (!missing.empty()) return Missing(rank, num_ranks, *store, timeout, missing);
  while (!port.WaitForAll(std::min(left(), kLook)) && left() > absl::ZeroDuration())
    RETURN_IF_ERROR(GivenUp(store));
  std::map<int64_t, std::unique_ptr<Socket>> come = port.Take();
  for (int64_t p = rank + 1; p < num_ranks; ++p) {
    const auto it = come.find(p);
    if (it == come.end()) {
      missing.push_back(p);
    } else {
      ASSIGN_OR_RETURN(peers.sockets[p], it->second->Release());
    }
  }
  if (!missing.empty()) return Missing(rank, num_ranks, *store, timeout, missing);
  return peers;
}

}  // namespace moe::comm
