#include "moe/comm/in_process/in_process.h"

#include <glog/logging.h>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/comm/call.h"
#include "moe/comm/in_process/group.h"

namespace moe::comm {

class InProcessWorld::View : public World {
 public:
  View(InProcessWorld* world, int64_t rank) : world_(world), rank_(rank) {}
  int64_t rank() const override { return rank_; }
  int64_t num_ranks() const override { return world_->num_ranks(); }
  absl::StatusOr<Communicator*> Group(absl::Span<const int64_t> ranks, absl::string_view channel,
                                      device::Stream* stream) override {
    return world_->Member(rank_, ranks, channel, stream);
  }
  void Abort(absl::Status reason) override { world_->Abort(std::move(reason)); }

 private:
  InProcessWorld* const world_;
  const int64_t rank_;
};

InProcessWorld::InProcessWorld(int64_t num_ranks, InProcessOptions options) : options_(options) {
  CHECK_GE(num_ranks, 1);
  for (int64_t r = 0; r < num_ranks; ++r) views_.push_back(std::make_unique<View>(this, r));
}

InProcessWorld::~InProcessWorld() = default;

absl::StatusOr<Communicator*> InProcessWorld::Member(int64_t rank, absl::Span<const int64_t> ranks,
                                                     absl::string_view channel, device::Stream* stream) {
  ASSIGN_OR_RETURN(const int at, PositionInGroup(rank, num_ranks(), ranks));
  const bool on_device = stream != nullptr && !stream->device()->host_accessible();
  absl::MutexLock lock(&mutex_);
  std::unique_ptr<InProcessGroup>& group =
      groups_[{std::vector<int64_t>(ranks.begin(), ranks.end()), std::string(channel), on_device}];
  if (group == nullptr) {
    group = std::make_unique<InProcessGroup>(std::vector<int64_t>(ranks.begin(), ranks.end()), options_);
    if (!aborted_.ok()) group->Abort(aborted_);
  }
  if (on_device) RETURN_IF_ERROR(group->Bind(at, stream));
  return group->member(at);
}

void InProcessWorld::Abort(absl::Status reason) {
  absl::MutexLock lock(&mutex_);
  if (!aborted_.ok()) return;
  aborted_ = reason.ok() ? absl::AbortedError("no reason given") : std::move(reason);
  for (auto& [key, group] : groups_) group->Abort(aborted_);
}

}  // namespace moe::comm
