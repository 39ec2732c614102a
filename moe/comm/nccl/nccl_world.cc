#include "moe/comm/nccl/nccl_world.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/comm/call.h"
#include "moe/comm/device_worlds.h"
#include "moe/comm/nccl/nccl_group.h"

namespace moe::comm {
namespace {

constexpr absl::Duration kWatchEvery = absl::Milliseconds(50);

const NcclBackendRegistration registration({
    []() -> absl::StatusOr<std::string> {
      ASSIGN_OR_RETURN(const NcclApi* nccl, LoadNccl());
      return NcclVersionName(nccl->version);
    },
    [](int64_t rank, int64_t num_ranks, Store* store, World* host,
       const DeviceWorldsOptions& wanted) -> absl::StatusOr<std::unique_ptr<World>> {
      NcclOptions options;
      options.timeout = wanted.timeout;
      options.connect_timeout = wanted.connect_timeout;
      options.canonical_order = wanted.canonical_order;
      options.pulse = wanted.pulse;
      return NcclWorld::Connect(rank, num_ranks, store, host, options);
    },
});

}  // namespace

absl::StatusOr<std::unique_ptr<NcclWorld>> NcclWorld::Connect(int64_t rank, int64_t num_ranks, Store* store,
                                                              World* host, const NcclOptions& options) {
  ASSIGN_OR_RETURN(const NcclApi* nccl, LoadNccl());
  std::unique_ptr<NcclWorld> w(new NcclWorld(nccl, rank, num_ranks, store, host, options));
  w->group_watcher_ = std::thread([p = w.get()] { p->WatchGroups(); });
  w->abort_watcher_ = std::thread([p = w.get()] {
    if (absl::Status ended = AwaitAbort(p->store_, &p->stop_); !ended.ok()) p->AbortHere(ended);
  });
  return w;
}

NcclWorld::NcclWorld(const NcclApi* nccl, int64_t rank, int64_t num_ranks, Store* store, World* host,
                     const NcclOptions& options)
    : nccl_(nccl), rank_(rank), num_ranks_(num_ranks), store_(store), host_(host), options_(options) {}

NcclWorld::~NcclWorld() {
  stop_.Cancel();
  if (group_watcher_.joinable()) group_watcher_.join();
  if (abort_watcher_.joinable()) abort_watcher_.join();
}

absl::StatusOr<Communicator*> NcclWorld::Group(absl::Span<const int64_t> ranks, absl::string_view channel,
                                               device::Stream* stream) {
  if (stream == nullptr || stream->kind() == device::DeviceKind::kHost) {
    if (host_ == nullptr) return absl::UnimplementedError("NCCL moves memory of GPUs, not the host's");
    return host_->Group(ranks, channel, stream);
  }
  if (stream->native() == nullptr) return absl::InvalidArgumentError("NCCL works on CUDA's streams alone");
  ASSIGN_OR_RETURN(const int at, PositionInGroup(rank_, num_ranks_, ranks));
  const std::pair<std::vector<int64_t>, std::string> key({ranks.begin(), ranks.end()}, std::string(channel));
  {
    absl::MutexLock lock(&mutex_);
    if (const auto it = groups_.find(key); it != groups_.end()) {
      RETURN_IF_ERROR(it->second->Bind(stream));
      return it->second.get();
    }
  }
  const std::string text = absl::StrCat(absl::StrJoin(ranks, ","), "/", channel);
  const std::string name = absl::StrCat("nccl/", absl::Hex(StableHash(text), absl::kZeroPad16));
  auto group = std::make_unique<NcclGroup>(nccl_, store_, name, key.first, at, options_);
  RETURN_IF_ERROR(group->Bind(stream));
  if (group->size() > 1) {
    ASSIGN_OR_RETURN(const ncclUniqueId id, AgreeOnId(name));
    RETURN_IF_ERROR(group->Connect(id));
  }
  absl::MutexLock lock(&mutex_);
  if (!aborted_.ok()) group->Abort(aborted_);
  return groups_.emplace(key, std::move(group)).first->second.get();
}

absl::StatusOr<ncclUniqueId> NcclWorld::AgreeOnId(const std::string& name) {
  ncclUniqueId id;
  absl::StatusOr<std::string> agreed = store_->Get(name, absl::ZeroDuration());
  if (absl::IsDeadlineExceeded(agreed.status())) {
    // Who comes first makes it: the members may all be formed by one thread, in any order.
    if (const ncclResult_t made = nccl_->GetUniqueId(&id); made != ncclSuccess) {
      return absl::UnavailableError(
          absl::StrCat("NCCL gives no id for a communicator: ", nccl_->GetErrorString(made)));
    }
    RETURN_IF_ERROR(store_->SetOnce(name, absl::string_view(id.internal, sizeof(id.internal))).status());
    agreed = GetUnlessAborted(store_, name, options_.connect_timeout);
  }
  RETURN_IF_ERROR(agreed.status());
  if (agreed->size() != sizeof(id.internal)) {
    return absl::InternalError(absl::StrCat("'", name, "' of ", store_->Describe(), " is not an id of NCCL"));
  }
  std::memcpy(id.internal, agreed->data(), sizeof(id.internal));
  return id;
}

absl::Status NcclWorld::Failure() {
  RETURN_IF_ERROR(Ended());
  for (NcclGroup* group : Groups()) RETURN_IF_ERROR(group->Check());
  return host_ == nullptr ? absl::OkStatus() : host_->Failure();
}

absl::Status NcclWorld::Ended() {
  absl::MutexLock lock(&mutex_);
  return aborted_;
}

std::vector<NcclGroup*> NcclWorld::Groups() {
  std::vector<NcclGroup*> groups;
  absl::MutexLock lock(&mutex_);
  for (auto& [key, group] : groups_) groups.push_back(group.get());
  return groups;
}

// A group aborts when nobody is inside NCCL with it. What one waits for, the world does not.
void NcclWorld::AbortHere(const absl::Status& reason) {
  {
    absl::MutexLock lock(&mutex_);
    if (!aborted_.ok()) return;
    aborted_ = absl::AbortedError(reason.ToString());
  }
  for (NcclGroup* group : Groups()) group->Abort(reason);
}

void NcclWorld::Abort(absl::Status reason) {
  if (reason.ok()) reason = absl::AbortedError("no reason given");
  AbortHere(reason);
  if (host_ != nullptr) host_->Abort(reason);
  AnnounceAbort(store_, rank_, reason);
}

void NcclWorld::WatchGroups() {
  while (!stop_.SleepFor(kWatchEvery)) {
    for (NcclGroup* group : Groups()) {
      // Who waits for the stream may never wake up, here and on the other ranks.
      if (const absl::Status late = group->Watch(); !late.ok()) Abort(late);
    }
  }
}

}  // namespace moe::comm
