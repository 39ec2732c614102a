// TcpStore: a Store that a StoreServer keeps, over one connection of framed messages (frames.h).
//
//   ASSIGN_OR_RETURN(auto server, StoreServer::Start({.token = token}));
//   const SocketAddress address = {.port = server->port()};
//   ASSIGN_OR_RETURN(auto store, TcpStore::Connect({address}, token, timeout));
//
// Unencrypted, and meant for loopback or a network of the job's own. Both ends show the token first. A call that has
// no answer after a few seconds gives Unavailable, as all do once the connection has closed. Thread-safe; owns a
// thread that reads and writes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "moe/comm/store/address.h"
#include "moe/comm/store/store.h"

namespace moe::comm {

class TcpStore : public Store {
 public:
  // Tries these addresses until one answers. Unavailable naming the first; PermissionDenied for another token,
  // ResourceExhausted if too many are connected. `run_by`: who runs the server, for messages.
  static absl::StatusOr<std::unique_ptr<TcpStore>> Connect(const std::vector<SocketAddress>& addresses,
                                                           const std::string& token, absl::Duration timeout,
                                                           const std::string& run_by = "rank 0");
  ~TcpStore() override;
  absl::Status Set(absl::string_view key, absl::string_view value) override;
  absl::StatusOr<bool> SetOnce(absl::string_view key, absl::string_view value) override;
  absl::StatusOr<std::string> Get(absl::string_view key, absl::Duration timeout,
                                  Cancellation* cancel = nullptr) override;
  std::string Describe() const override { return address_ + " (run by " + run_by_ + ")"; }

 private:
  class Client;
  TcpStore(std::string address, std::string run_by);
  absl::StatusOr<bool> Put(absl::string_view key, absl::string_view value, bool once);
  // An error of a call, with the address.
  absl::Status Said(const absl::Status& status) const;

  const std::string address_, run_by_;
  std::unique_ptr<Client> client_;
};

}  // namespace moe::comm
