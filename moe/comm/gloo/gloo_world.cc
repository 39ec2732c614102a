#include "moe/comm/gloo/gloo_world.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/comm/call.h"
#include "moe/comm/gloo/gloo_group.h"
#include "moe/comm/gloo/gloo_transport.h"

namespace moe::comm {

absl::StatusOr<std::unique_ptr<GlooWorld>> GlooWorld::Connect(int64_t rank, int64_t num_ranks, Store* store,
                                                              const GlooOptions& options) {
  std::unique_ptr<GlooWorld> w(new GlooWorld(rank, num_ranks, store, options));
  ASSIGN_OR_RETURN(w->transport_, GlooTransport::Connect(rank, num_ranks, store, options));
  w->watcher_ = std::thread([p = w.get()] {
    if (absl::Status ended = AwaitAbort(p->store_, &p->stop_); !ended.ok()) p->transport_->Fail(ended);
  });
  return w;
}

GlooWorld::GlooWorld(int64_t rank, int64_t num_ranks, Store* store, const GlooOptions& options)
    : rank_(rank), num_ranks_(num_ranks), store_(store), options_(options) {}

GlooWorld::~GlooWorld() {
  stop_.Cancel();
  if (watcher_.joinable()) watcher_.join();
  groups_.clear();
}

absl::StatusOr<Communicator*> GlooWorld::Group(absl::Span<const int64_t> ranks, absl::string_view channel,
                                               device::Stream* stream) {
  if (stream != nullptr && stream->kind() != device::DeviceKind::kHost) {
    return absl::UnimplementedError(
        absl::StrCat("Gloo moves the host's memory, not that of ", device::DeviceKindName(stream->kind())));
  }
  ASSIGN_OR_RETURN(const int at, PositionInGroup(rank_, num_ranks_, ranks));
  absl::MutexLock lock(&mutex_);
  std::unique_ptr<GlooGroup>& group =
      groups_[{std::vector<int64_t>(ranks.begin(), ranks.end()), std::string(channel)}];
  if (group == nullptr) {
    // The members agree on the number of a group without talking. Of two groups with one number that share a
    // rank pair, both ranks see both.
    const std::string name = absl::StrCat(absl::StrJoin(ranks, ","), "/", channel);
    uint64_t id = StableHash(name);
    id = (id ^ (id >> 40)) & ((uint64_t{1} << 40) - 1);
    const auto [it, fresh] = ids_.emplace(id, name);
    if (!fresh) {
      return absl::InternalError(
          absl::StrCat("the groups ", it->second, " and ", name, " have the same number"));
    }
    group = std::make_unique<GlooGroup>(transport_.get(), std::vector<int64_t>(ranks.begin(), ranks.end()),
                                        at, id);
  }
  return group.get();
}

bool GlooWorld::LostSome() { return transport_->LostSome(); }

absl::Status GlooWorld::Ended() { return transport_->failed(); }

void GlooWorld::Abort(absl::Status reason) {
  if (reason.ok()) reason = absl::AbortedError("no reason given");
  transport_->Fail(absl::AbortedError(reason.ToString()));
  AnnounceAbort(store_, rank_, reason);
}

}  // namespace moe::comm
