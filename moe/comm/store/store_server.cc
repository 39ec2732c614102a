#include "moe/comm/store/store_server.h"

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/comm/store/frames.h"
#include "moe/comm/store/secured_socket.h"

namespace moe::comm {
namespace {

// A client that does not read its answers is not read from either.
constexpr size_t kMaxUnsent = size_t{4} << 20;
constexpr size_t kMaxWaits = 4096;  // of one client
constexpr absl::Duration kFarewell = absl::Milliseconds(300);

}  // namespace

class StoreServer::Service {
 public:
  Service(std::unique_ptr<SocketLoop> loop, const StoreServerOptions& options)
      : options_(options),
        loop_(std::move(loop)),
        listener_(
            *loop_,
            {.secret = {options.token, "store"},
             .max_strangers = options.max_strangers,
             .patience = options.patience,
             .has_room = [this] { return static_cast<int>(clients_.size()) < options_.max_connections; }},
            [this](std::unique_ptr<Socket> socket, uint64_t) { Serve(std::move(socket)); }),
        end_(*loop_) {}
  // What was answered arrives: clients see the end of the stream after it, and close.
  ~Service() {
    loop_->Post([this] {
      ending_ = true;
      listener_.Close();
      for (const ClientPtr& client : clients_) client->socket->EndWriting();
      if (clients_.empty()) return loop_->Quit();
      end_.After(kFarewell, [this] { loop_->Quit(); });
    });
    loop_->Join();
  }

  absl::Status Start() {
    RETURN_IF_ERROR(listener_.Open(options_.address));
    return loop_->Start();
  }
  int port() const { return listener_.port(); }
  int64_t refused() const { return listener_.refused(); }

 private:
  struct Client {
    explicit Client(std::unique_ptr<Socket> s) : socket(std::move(s)) {}
    const std::unique_ptr<Socket> socket;
    std::string head = std::string(kFrameHead, '\0'), body;
    std::deque<std::string> unsent;
    size_t unsent_bytes = 0;
    bool reading = false, gone = false;
    std::map<uint64_t, std::string> waits;  // by id, for a key
  };
  using ClientPtr = std::shared_ptr<Client>;

  void Serve(std::unique_ptr<Socket> socket) {
    const auto client = std::make_shared<Client>(std::move(socket));
    clients_.insert(client);
    Read(client);
  }

  void Drop(const ClientPtr& client) {
    if (client->gone) return;
    client->gone = true;
    for (const auto& [id, key] : client->waits) Forget(client, id, key);
    client->waits.clear();
    client->socket->Close();
    clients_.erase(client);
    if (ending_ && clients_.empty()) loop_->Quit();
  }

  void Read(const ClientPtr& client) {
    if (client->reading || client->gone || client->unsent_bytes > kMaxUnsent) return;
    client->reading = true;
    client->socket->Read(client->head.data(), client->head.size(), [this, client](const absl::Status& read) {
      const absl::StatusOr<size_t> size = FrameSize(client->head);
      if (!read.ok() || !size.ok()) return Drop(client);
      client->body.resize(*size);
      ReadBody(client);
    });
  }

  void ReadBody(const ClientPtr& client) {
    client->socket->Read(client->body.data(), client->body.size(), [this, client](const absl::Status& read) {
      const absl::StatusOr<Frame> frame = ParseFrame(client->body);
      if (!read.ok() || !frame.ok() || !Do(client, *frame)) return Drop(client);
      client->reading = false;
      Read(client);
    });
  }

  // False for what no client asks.
  bool Do(const ClientPtr& client, const Frame& frame) {
    const auto found = values_.find(frame.key);
    switch (frame.type) {
      case FrameType::kSet:
      case FrameType::kSetOnce:
        Store(client, frame);
        return true;
      case FrameType::kGet:
        if (found != values_.end()) {
          Send(client, {FrameType::kValue, 0, frame.id, "", found->second});
        } else if (client->waits.size() >= kMaxWaits) {
          Fail(client, frame.id,
               absl::ResourceExhaustedError(absl::StrCat("more than ", kMaxWaits, " calls wait")));
        } else if (client->waits.emplace(frame.id, frame.key).second) {
          waits_[std::string(frame.key)].insert({client, frame.id});
        } else {
          return false;
        }
        return true;
      case FrameType::kPeek:
        if (found != values_.end()) {
          Send(client, {FrameType::kValue, 0, frame.id, "", found->second});
        } else {
          Fail(client, frame.id, absl::NotFoundError("no value"));
        }
        return true;
      case FrameType::kCancel:
        if (const auto it = client->waits.find(frame.id); it != client->waits.end()) {
          Forget(client, frame.id, it->second);
          client->waits.erase(it);
        }
        return true;
      case FrameType::kStored:
      case FrameType::kValue:
      case FrameType::kError:
        break;
    }
    return false;
  }

  void Forget(const ClientPtr& client, uint64_t id, const std::string& key) {
    const auto it = waits_.find(key);
    if (it == waits_.end()) return;
    it->second.erase({client, id});
    if (it->second.empty()) waits_.erase(it);
  }

  void Store(const ClientPtr& client, const Frame& frame) {
    const auto it = values_.find(frame.key);
    const bool fresh = it == values_.end();
    if (!fresh && frame.type == FrameType::kSetOnce)
      return Send(client, {FrameType::kStored, 0, frame.id, "", ""});
    const int64_t bytes = bytes_ + static_cast<int64_t>(frame.value.size()) -
                          (fresh ? 0 : static_cast<int64_t>(it->second.size()));
    if (bytes > options_.max_bytes || (fresh && static_cast<int64_t>(values_.size()) >= options_.max_keys)) {
      return Fail(client, frame.id,
                  absl::ResourceExhaustedError(
                      absl::StrCat("the store is full: ", values_.size(), " keys, ", bytes_, " bytes")));
    }
    bytes_ = bytes;
    const std::string key(frame.key);
    values_[key] = std::string(frame.value);
    Send(client, {FrameType::kStored, 1, frame.id, "", ""});
    if (const auto waiting = waits_.find(key); waiting != waits_.end()) {
      const std::set<std::pair<ClientPtr, uint64_t>> answered = std::move(waiting->second);
      waits_.erase(waiting);
      for (const auto& [other, id] : answered) {
        other->waits.erase(id);
        Send(other, {FrameType::kValue, 0, id, "", frame.value});
      }
    }
    if (fresh && absl::StartsWith(key, kMemberKey) && ++members_ == options_.members) listener_.Close();
  }

  void Fail(const ClientPtr& client, uint64_t id, const absl::Status& why) {
    Send(client, {FrameType::kError, static_cast<uint8_t>(why.code()), id, "", why.message()});
  }

  void Send(const ClientPtr& client, const Frame& frame) {
    if (client->gone) return;
    client->unsent.push_back(FrameBytes(frame));
    client->unsent_bytes += client->unsent.back().size();
    if (client->unsent.size() == 1) Write(client);
  }

  void Write(const ClientPtr& client) {
    client->socket->Write(client->unsent.front(), [this, client](const absl::Status& written) {
      if (!written.ok() || client->gone) return Drop(client);
      client->unsent_bytes -= client->unsent.front().size();
      client->unsent.pop_front();
      if (!client->unsent.empty()) Write(client);
      Read(client);
    });
  }

  const StoreServerOptions options_;
  const std::unique_ptr<SocketLoop> loop_;
  std::map<std::string, std::string, std::less<>> values_;
  int64_t bytes_ = 0, members_ = 0;
  std::set<ClientPtr> clients_;
  std::map<std::string, std::set<std::pair<ClientPtr, uint64_t>>> waits_;
  SecuredListener listener_;
  Timer end_;
  bool ending_ = false;
};

StoreServer::StoreServer(std::unique_ptr<Service> service) : service_(std::move(service)) {}
StoreServer::~StoreServer() = default;
int StoreServer::port() const { return service_->port(); }
int64_t StoreServer::refused() const { return service_->refused(); }

absl::StatusOr<std::unique_ptr<StoreServer>> StoreServer::Start(const StoreServerOptions& options) {
  const auto start = [&]() -> absl::StatusOr<std::unique_ptr<Service>> {
    ASSIGN_OR_RETURN(std::unique_ptr<SocketLoop> loop, SocketLoop::Create());
    auto service = std::make_unique<Service>(std::move(loop), options);
    RETURN_IF_ERROR(service->Start());
    return service;
  };
  absl::StatusOr<std::unique_ptr<Service>> service = start();
  RETURN_IF_ERROR(Annotate(service.status(), "the rendezvous"));
  return std::unique_ptr<StoreServer>(new StoreServer(*std::move(service)));
}

}  // namespace moe::comm
