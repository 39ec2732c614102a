// Connections whose ends have shown each other the token of the job (handshake.h).
//
//   ASSIGN_OR_RETURN(const std::unique_ptr<SocketLoop> loop, SocketLoop::Create());
//   SecuredListener listener(*loop, {.secret = {token, "store"}},
//                            [&](std::unique_ptr<Socket> socket, uint64_t who) { Serve(std::move(socket), who); });
//   RETURN_IF_ERROR(listener.Open({.host = "10.0.0.7"}));
//   RETURN_IF_ERROR(loop->Start());                                // the callback runs on its thread
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Socket> socket, Dial(*mine, addresses, {token, "store"}, rank, timeout));
//
// A stranger, which has not shown the token, costs one descriptor and a few hundred bytes, of which there is a fixed
// number: the oldest goes for a new one. It is sent away at the first wrong byte, and after a few seconds in any case.
// Nothing is sent to it but a random number. A process that runs out of descriptors accepts nobody until it has some.
//
// One thread: the loop's. The loop outlives the listener, and no callback runs when that is destroyed.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "moe/comm/store/address.h"
#include "moe/comm/store/handshake.h"
#include "moe/comm/store/socket.h"

namespace moe::comm {

struct SecuredListenerOptions {
  Secret secret;
  int max_strangers = 128;
  absl::Duration patience = absl::Seconds(5);            // with a stranger
  std::function<bool()> has_room = [] { return true; };  // for one more that has the token
};

class SecuredListener {
 public:
  using Admitted = std::function<void(std::unique_ptr<Socket> socket, uint64_t who)>;
  SecuredListener(SocketLoop& loop, SecuredListenerOptions options, Admitted admitted);
  // Unavailable, naming the address, if the system does not let it listen there. Once, before the loop starts.
  absl::Status Open(const SocketAddress& address);
  int port() const { return acceptor_.port(); }
  // How many showed another token; from any thread.
  int64_t refused() const { return refused_; }
  // Nobody can connect any more, and strangers are sent away.
  void Close();

 private:
  struct Stranger;
  void Accept();
  void Greet(std::unique_ptr<Socket> socket);
  void Hear(const std::shared_ptr<Stranger>& stranger, size_t begin, size_t end);
  void Judge(const std::shared_ptr<Stranger>& stranger);
  void SendAway(const std::shared_ptr<Stranger>& stranger);

  SocketLoop& loop_;
  const SecuredListenerOptions options_;
  const Admitted admitted_;
  Acceptor acceptor_;
  Timer retry_;
  std::list<std::shared_ptr<Stranger>> strangers_;  // the oldest first
  std::atomic<int64_t> refused_ = 0;
};

// Connects to the first of these addresses that answers, trying again until the time is over; runs the loop, which
// nobody else may do meanwhile. `who`: what the listener gets to know. Errors: Unavailable if nobody answers; those of
// CheckChallenge and CheckVerdict, at once.
absl::StatusOr<std::unique_ptr<Socket>> Dial(SocketLoop& loop, const std::vector<SocketAddress>& addresses,
                                             const Secret& secret, uint64_t who, absl::Duration timeout);

}  // namespace moe::comm
