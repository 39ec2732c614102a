// A Store as a small gRPC service: rank 0, or what started the processes, runs the server; every process is a
// client.
//
//   ASSIGN_OR_RETURN(auto server, StoreServer::Start({.address = "127.0.0.1:0", .token = token}));
//   const std::string address = absl::StrCat("127.0.0.1:", server->port());
//   ASSIGN_OR_RETURN(auto store, GrpcStore::Connect(address, token, timeout));
//
// The service is unencrypted and meant for loopback or a network of the job's own. What it defends: a call
// without the job's token is refused before anything is read of it; keys, values, their number and sum,
// connections and memory are bounded; a waiting call costs no thread. The server ends its clients' calls when
// it is destroyed. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "moe/comm/store/store.h"

namespace moe::comm {

struct StoreServerOptions {
  std::string address = "127.0.0.1:0";  // host:port; port 0: any that is free
  std::string token;
  int max_connections = 4096;
  int64_t max_keys = 1 << 20;
  int64_t max_bytes = int64_t{256} << 20;  // of all values
};

class StoreServer {
 public:
  // Unavailable if the address cannot be listened at.
  static absl::StatusOr<std::unique_ptr<StoreServer>> Start(const StoreServerOptions& options);
  ~StoreServer();
  int port() const { return port_; }

 private:
  class Service;
  StoreServer();
  struct Running;
  std::unique_ptr<Running> running_;
  int port_ = 0;
};

class GrpcStore : public Store {
 public:
  // Waits until the server answers. Unavailable naming the address; PermissionDenied for another token.
  // `run_by`: who runs the server, for messages.
  static absl::StatusOr<std::unique_ptr<GrpcStore>> Connect(const std::string& address,
                                                            const std::string& token, absl::Duration timeout,
                                                            const std::string& run_by = "rank 0");
  ~GrpcStore() override;
  absl::Status Set(absl::string_view key, absl::string_view value) override;
  absl::StatusOr<bool> SetOnce(absl::string_view key, absl::string_view value) override;
  absl::StatusOr<std::string> Get(absl::string_view key, absl::Duration timeout,
                                  Cancellation* cancel = nullptr) override;
  std::string Describe() const override { return address_ + " (run by " + run_by_ + ")"; }

 private:
  struct Client;
  GrpcStore(std::string address, std::string token, std::string run_by);
  absl::StatusOr<bool> Put(absl::string_view key, absl::string_view value, bool once);

  const std::string address_, token_, run_by_;
  std::unique_ptr<Client> client_;
};

}  // namespace moe::comm
