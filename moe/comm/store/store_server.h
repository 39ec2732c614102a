// StoreServer: the values of a Store, and the port where the processes of a job reach them. Rank 0 runs it, or what
// started the processes.
//
//   ASSIGN_OR_RETURN(auto server, StoreServer::Start({.token = token, .members = 4}));
//   const SocketAddress address = {.port = server->port()};      // of loopback, for TcpStore::Connect
//
// Who connects shows the token before anything else is read (secured_socket.h). Keys, values, their number and sum,
// connections, what they wait for and what waits for them are bounded. Once all members have come the port is closed:
// a process that connects later finds nobody, those that have come stay. One thread serves all; the object belongs
// to one. It ends the waits of its clients when it is destroyed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "moe/comm/store/address.h"

namespace moe::comm {

// A member has come when it has set the key kMemberKey and its number: "joined/3".
inline constexpr char kMemberKey[] = "joined/";

struct StoreServerOptions {
  SocketAddress address;  // port 0: any that is free
  std::string token;
  int64_t members = 0;  // so many come; 0: not known, the port stays open
  int max_connections = 4096, max_strangers = 128;
  absl::Duration patience = absl::Seconds(5);  // with who has not shown the token
  int64_t max_keys = 1 << 20;
  int64_t max_bytes = int64_t{256} << 20;  // of all values
};

class StoreServer {
 public:
  // Unavailable if the address cannot be listened at, or the system has no descriptor or thread left.
  static absl::StatusOr<std::unique_ptr<StoreServer>> Start(const StoreServerOptions& options);
  ~StoreServer();
  int port() const;
  int64_t refused() const;  // connections that showed another token

 private:
  class Service;
  explicit StoreServer(std::unique_ptr<Service> service);
  std::unique_ptr<Service> service_;
};

}  // namespace moe::comm
