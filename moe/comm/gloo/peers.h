// Connections between the ranks of a job: one of each pair, whose ends have shown each other that they belong to it.
//
//   ASSIGN_OR_RETURN(const Peers peers, ConnectPeers(rank, num_ranks, store, address, absl::Seconds(60)));
//   const int socket = peers.sockets[3];  // connected to rank 3
//
// Every rank listens at a port of its own for those above it, under a secret of its own that its peers get from the
// store, and closes the port once they have come. A stranger there is sent away (moe/comm/store/secured_socket.h) and
// delays nobody. Ranks call this at the same time; each call has a thread of its own while it lasts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "moe/comm/store/store.h"

namespace moe::comm {

struct Peers {
  Peers() = default;
  ~Peers();
  Peers(Peers&& other) noexcept : sockets(std::move(other.sockets)) { other.sockets.clear(); }
  Peers& operator=(Peers&& other) noexcept {
    sockets.swap(other.sockets);
    return *this;
  }
  std::vector<int> sockets;  // by rank; -1: this rank, or taken. Those that are left are closed
};

// `address`: numeric, of this process, where its peers reach it. Errors: DeadlineExceeded naming the ranks that did
// not come; Unavailable, naming the address; Aborted with the reason if one of them gave up.
absl::StatusOr<Peers> ConnectPeers(int64_t rank, int64_t num_ranks, Store* store, const std::string& address,
                                   absl::Duration timeout);

}  // namespace moe::comm
