#include "moe/comm/store/grpc_store.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "moe/base/status.h"
#include "moe/comm/store/store.grpc.pb.h"

namespace moe::comm {
namespace {

constexpr int kMaxMessage = static_cast<int>(kMaxStoreValue) + 4096;
constexpr absl::Duration kCallTimeout = absl::Seconds(5);  // of what is answered at once

absl::Status FromGrpc(const grpc::Status& s, absl::string_view address) {
  if (s.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(s.error_code()),
                      absl::StrCat("the rendezvous at ", address, ": ", s.error_message()));
}

// Equal tokens are found without telling by the time how much of a wrong one was right.
bool SameToken(absl::string_view a, absl::string_view b) {
  unsigned char differ = a.size() != b.size();
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) differ |= static_cast<unsigned char>(a[i] ^ b[i]);
  return differ == 0;
}

}  // namespace

class StoreServer::Service : public KeyValue::CallbackService {
 public:
  explicit Service(const StoreServerOptions& options) : options_(options) {}

  grpc::ServerUnaryReactor* Set(grpc::CallbackServerContext* context, const StoreSetRequest* request,
                                StoreSetReply* reply) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    grpc::Status status = Admit(*context, request->token(), request->key(), request->value());
    std::vector<Waiter*> waiters;
    if (status.ok()) status = Store(*request, reply, &waiters);
    for (Waiter* w : waiters) w->Answer(request->value());
    reactor->Finish(status);
    return reactor;
  }

  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context, const StoreGetRequest* request,
                                StoreGetReply* reply) override {
    const grpc::Status status = Admit(*context, request->token(), request->key(), "");
    auto* waiter = new Waiter(this, request->key(), reply);
    if (!status.ok()) {
      waiter->End(status);
      return waiter;
    }
    std::string value;
    {
      absl::MutexLock lock(&mutex_);
      const auto it = values_.find(request->key());
      if (it == values_.end()) {
        waiters_[request->key()].insert(waiter);
        waiter->queued = true;
        if (!waiter->cancelled) return waiter;
        Forget(waiter);
      } else {
        value = it->second;
      }
    }
    waiter->Answer(value);
    return waiter;
  }

 private:
  // A Get that waits for its key.
  class Waiter : public grpc::ServerUnaryReactor {
   public:
    Waiter(Service* service, std::string key, StoreGetReply* reply)
        : service_(service), key_(std::move(key)), reply_(reply) {}
    void Answer(const std::string& value) {
      reply_->set_value(value);
      Finish(grpc::Status::OK);
    }
    void End(const grpc::Status& status) { Finish(status); }
    void OnCancel() override {
      {
        absl::MutexLock lock(&service_->mutex_);
        cancelled = true;
        if (!queued) return;  // it is being answered, or not yet queued: then Get sees the mark
        service_->Forget(this);
      }
      Finish(grpc::Status::CANCELLED);
    }
    void OnDone() override { delete this; }
    const std::string& key() const { return key_; }
    bool queued = false, cancelled = false;  // guarded by the mutex of the service

   private:
    Service* const service_;
    const std::string key_;
    StoreGetReply* const reply_;
  };

  void Forget(Waiter* w) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    w->queued = false;
    auto it = waiters_.find(w->key());
    if (it == waiters_.end()) return;
    it->second.erase(w);
    if (it->second.empty()) waiters_.erase(it);
  }

  grpc::Status Admit(const grpc::CallbackServerContext& context, const std::string& token,
                     const std::string& key, const std::string& value) {
    if (!SameToken(token, options_.token)) {
      return {grpc::StatusCode::PERMISSION_DENIED, "this is another job: the token does not match"};
    }
    const absl::Status wrong = CheckStoreEntry(key, value);
    if (!wrong.ok()) return {grpc::StatusCode::INVALID_ARGUMENT, std::string(wrong.message())};
    absl::MutexLock lock(&mutex_);
    if (connections_.count(context.peer()) == 0) {
      if (static_cast<int>(connections_.size()) >= options_.max_connections) {
        return {grpc::StatusCode::RESOURCE_EXHAUSTED,
                absl::StrCat("more than ", options_.max_connections, " connections")};
      }
      connections_.insert(context.peer());
    }
    return grpc::Status::OK;
  }

  grpc::Status Store(const StoreSetRequest& request, StoreSetReply* reply, std::vector<Waiter*>* waiters) {
    absl::MutexLock lock(&mutex_);
    auto it = values_.find(request.key());
    if (it != values_.end() && request.once()) {
      reply->set_stored(false);
      return grpc::Status::OK;
    }
    const int64_t before = it == values_.end() ? 0 : static_cast<int64_t>(it->second.size());
    const int64_t bytes = bytes_ - before + static_cast<int64_t>(request.value().size());
    if (bytes > options_.max_bytes ||
        (it == values_.end() && static_cast<int64_t>(values_.size()) >= options_.max_keys)) {
      return {grpc::StatusCode::RESOURCE_EXHAUSTED,
              absl::StrCat("the store is full: ", values_.size(), " keys, ", bytes_, " bytes")};
    }
    bytes_ = bytes;
    values_[request.key()] = request.value();
    reply->set_stored(true);
    auto waiting = waiters_.find(request.key());
    if (waiting != waiters_.end()) {
      for (Waiter* w : waiting->second) {
        w->queued = false;
        waiters->push_back(w);
      }
      waiters_.erase(waiting);
    }
    return grpc::Status::OK;
  }

  const StoreServerOptions options_;
  absl::Mutex mutex_;
  std::map<std::string, std::string> values_ ABSL_GUARDED_BY(mutex_);
  int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, std::set<Waiter*>> waiters_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> connections_ ABSL_GUARDED_BY(mutex_);
};

struct StoreServer::Running {
  explicit Running(const StoreServerOptions& options) : service(options) {}
  Service service;
  std::unique_ptr<grpc::Server> server;
};

StoreServer::StoreServer() = default;

absl::StatusOr<std::unique_ptr<StoreServer>> StoreServer::Start(const StoreServerOptions& options) {
  std::unique_ptr<StoreServer> s(new StoreServer());
  s->running_ = std::make_unique<Running>(options);
  grpc::ResourceQuota quota("rendezvous");
  quota.Resize(static_cast<size_t>(options.max_bytes) + (size_t{64} << 20));
  grpc::ServerBuilder builder;
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(kMaxMessage);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second job at the same port must fail
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8192);
  builder.AddListeningPort(options.address, grpc::InsecureServerCredentials(), &s->port_);
  builder.RegisterService(&s->running_->service);
  s->running_->server = builder.BuildAndStart();
  if (s->running_->server == nullptr || s->port_ == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen at ", options.address,
                     " for the rendezvous; is the port taken, or the address another host's?"));
  }
  return s;
}

StoreServer::~StoreServer() {
  if (running_ == nullptr || running_->server == nullptr) return;
  running_->server->Shutdown(std::chrono::system_clock::now());  // cancels the calls that wait
  running_->server->Wait();
}

struct GrpcStore::Client {
  std::unique_ptr<KeyValue::Stub> stub;
};

GrpcStore::GrpcStore(std::string address, std::string token, std::string run_by)
    : address_(std::move(address)),
      token_(std::move(token)),
      run_by_(std::move(run_by)),
      client_(std::make_unique<Client>()) {}

GrpcStore::~GrpcStore() = default;

absl::StatusOr<std::unique_ptr<GrpcStore>> GrpcStore::Connect(const std::string& address,
                                                              const std::string& token,
                                                              absl::Duration timeout,
                                                              const std::string& run_by) {
  std::unique_ptr<GrpcStore> store(new GrpcStore(address, token, run_by));
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kMaxMessage);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // peers are reached directly
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
  if (!channel->WaitForConnected(absl::ToChronoTime(absl::Now() + timeout))) {
    return absl::UnavailableError(
        absl::StrCat("nobody answers at ", store->Describe(), " within ", absl::FormatDuration(timeout)));
  }
  store->client_->stub = KeyValue::NewStub(channel);
  RETURN_IF_ERROR(store->Set("hello", ""));
  return store;
}

absl::StatusOr<bool> GrpcStore::Put(absl::string_view key, absl::string_view value, bool once) {
  RETURN_IF_ERROR(CheckStoreEntry(key, value));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kCallTimeout));
  StoreSetRequest request;
  request.set_token(token_);
  request.set_key(std::string(key));
  request.set_value(std::string(value));
  request.set_once(once);
  StoreSetReply reply;
  RETURN_IF_ERROR(FromGrpc(client_->stub->Set(&context, request, &reply), Describe()));
  return reply.stored();
}

absl::Status GrpcStore::Set(absl::string_view key, absl::string_view value) {
  return Put(key, value, false).status();
}

absl::StatusOr<bool> GrpcStore::SetOnce(absl::string_view key, absl::string_view value) {
  return Put(key, value, true);
}

absl::StatusOr<std::string> GrpcStore::Get(absl::string_view key, absl::Duration timeout,
                                           Cancellation* cancel) {
  RETURN_IF_ERROR(CheckStoreEntry(key, ""));
  grpc::ClientContext context;
  // A value that is there must be found also by who does not wait for one.
  const absl::Duration wait = std::max(timeout, absl::Milliseconds(100));
  context.set_deadline(absl::ToChronoTime(absl::Now() + wait));
  StoreGetRequest request;
  request.set_token(token_);
  request.set_key(std::string(key));
  StoreGetReply reply;
  Cancellation::Hook hook(cancel, [&] { context.TryCancel(); });
  const grpc::Status status = client_->stub->Get(&context, request, &reply);
  if (status.ok()) return reply.value();
  if (cancel != nullptr && cancel->cancelled()) return absl::CancelledError("the wait was cancelled");
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) return StoreTimeout(*this, key, timeout);
  if (status.error_code() == grpc::StatusCode::CANCELLED) {
    return absl::UnavailableError(absl::StrCat("the rendezvous at ", Describe(), " has ended"));
  }
  return FromGrpc(status, Describe());
}

}  // namespace moe::comm
