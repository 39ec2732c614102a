#include "moe/comm/recorded_world.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/strip.h"
#include "moe/base/clock.h"
#include "moe/base/status.h"
#include "moe/comm/call.h"

namespace moe::comm {

class RecordedWorld::Recorded : public Communicator {
 public:
  explicit Recorded(Communicator* inner) : inner_(inner) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  absl::Status Run(const Call& call) override {
    {
      absl::MutexLock lock(&mutex_);
      // After a failure the group is of no use, and what it failed in is what counts.
      if (state_ != RecordedCall::kFailed) {
        op_ = absl::StripSuffix(CallName(call.op), "_v");
        what_bytes_ = std::min(call.what.size(), sizeof(what_));
        std::memcpy(what_, call.what.data(), what_bytes_);
        ++number_;
        state_ = RecordedCall::kRunning;
        begin_ = NowNanos();
      }
    }
    absl::Status status = inner_->Run(call);
    absl::MutexLock lock(&mutex_);
    if (state_ == RecordedCall::kRunning) {
      state_ = status.ok() ? RecordedCall::kDone : RecordedCall::kFailed;
      end_ = NowNanos();
    }
    return status;
  }
  void Abort(absl::Status reason) override { inner_->Abort(std::move(reason)); }

  bool Read(int64_t now, RecordedCall* out) const {
    absl::MutexLock lock(&mutex_);
    if (number_ == 0) return false;
    out->op = std::string(op_);
    out->what.assign(what_, what_bytes_);
    out->number = number_;
    out->state = state_;
    const int64_t end = state_ == RecordedCall::kRunning ? now : end_;
    out->seconds = static_cast<double>(end - begin_) / 1e9;
    out->ago = static_cast<double>(now - end) / 1e9;
    return true;
  }

 private:
  Communicator* const inner_;
  mutable absl::Mutex mutex_;
  absl::string_view op_ ABSL_GUARDED_BY(mutex_);
  char what_[120] ABSL_GUARDED_BY(mutex_);
  size_t what_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t number_ ABSL_GUARDED_BY(mutex_) = 0, begin_ ABSL_GUARDED_BY(mutex_) = 0,
                  end_ ABSL_GUARDED_BY(mutex_) = 0;
  RecordedCall::State state_ ABSL_GUARDED_BY(mutex_) = RecordedCall::kDone;
};

RecordedWorld::RecordedWorld(World* inner) : inner_(inner) {}
RecordedWorld::~RecordedWorld() = default;

absl::StatusOr<Communicator*> RecordedWorld::Group(absl::Span<const int64_t> ranks, absl::string_view channel,
                                                   device::Stream* stream) {
  ASSIGN_OR_RETURN(Communicator * inner, inner_->Group(ranks, channel, stream));
  absl::MutexLock lock(&mutex_);
  std::unique_ptr<Recorded>& group =
      groups_[{std::string(channel), std::vector<int64_t>(ranks.begin(), ranks.end())}];
  if (group == nullptr) group = std::make_unique<Recorded>(inner);
  return group.get();
}

std::vector<RecordedCall> RecordedWorld::Calls() const {
  const int64_t now = NowNanos();
  std::vector<RecordedCall> out;
  absl::MutexLock lock(&mutex_);
  for (const auto& [key, group] : groups_) {
    RecordedCall call;
    if (!group->Read(now, &call)) continue;
    call.channel = key.first;
    call.ranks = key.second;
    out.push_back(std::move(call));
  }
  return out;
}

}  // namespace moe::comm
