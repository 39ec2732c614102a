#include "moe/comm/recorded_world.h"

#include <algorithm>
#include <cstring>

#include "moe/base/clock.h"
#include "moe/base/status.h"

namespace moe::comm {

class RecordedWorld::Recorded : public Communicator {
 public:
  explicit Recorded(Communicator* inner) : inner_(inner) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  absl::Status AllReduce(const void* in, void* out, int64_t count, DType dtype, Reduction kind,
                         absl::string_view what) override {
    return Note("all_reduce", what, [&] { return inner_->AllReduce(in, out, count, dtype, kind, what); });
  }
  absl::Status ReduceScatter(const void* in, void* out, int64_t count, DType dtype, Reduction kind,
                             absl::string_view what) override {
    return Note("reduce_scatter", what,
                [&] { return inner_->ReduceScatter(in, out, count, dtype, kind, what); });
  }
  absl::Status AllGather(const void* in, void* out, int64_t count, DType dtype,
                         absl::string_view what) override {
    return Note("all_gather", what, [&] { return inner_->AllGather(in, out, count, dtype, what); });
  }
  absl::Status AllToAll(const void* in, void* out, int64_t count, DType dtype,
                        absl::string_view what) override {
    return Note("all_to_all", what, [&] { return inner_->AllToAll(in, out, count, dtype, what); });
  }
  absl::Status AllToAllV(const void* in, absl::Span<const int64_t> send_counts, void* out,
                         absl::Span<const int64_t> recv_counts, DType dtype,
                         absl::string_view what) override {
    return Note("all_to_all", what,
                [&] { return inner_->AllToAllV(in, send_counts, out, recv_counts, dtype, what); });
  }
  absl::Status AllGatherV(const void* in, int64_t count, void* out, absl::Span<const int64_t> counts,
                          DType dtype, absl::string_view what) override {
    return Note("all_gather", what, [&] { return inner_->AllGatherV(in, count, out, counts, dtype, what); });
  }
  absl::Status ReduceScatterV(const void* in, absl::Span<const int64_t> counts, void* out, DType dtype,
                              Reduction kind, absl::string_view what) override {
    return Note("reduce_scatter", what,
                [&] { return inner_->ReduceScatterV(in, counts, out, dtype, kind, what); });
  }
  absl::Status Broadcast(void* data, int64_t count, DType dtype, int root, absl::string_view what) override {
    return Note("broadcast", what, [&] { return inner_->Broadcast(data, count, dtype, root, what); });
  }
  absl::Status Send(const void* data, int64_t bytes, int peer, int64_t tag, absl::string_view what) override {
    return Note("send", what, [&] { return inner_->Send(data, bytes, peer, tag, what); });
  }
  absl::Status Recv(void* data, int64_t bytes, int peer, int64_t tag, absl::string_view what) override {
    return Note("receive", what, [&] { return inner_->Recv(data, bytes, peer, tag, what); });
  }
  absl::Status Barrier(absl::string_view what) override {
    return Note("barrier", what, [&] { return inner_->Barrier(what); });
  }
  void Abort(absl::Status reason) override { inner_->Abort(std::move(reason)); }

  bool Read(int64_t now, RecordedCall* out) const {
    absl::MutexLock lock(&mutex_);
    if (number_ == 0) return false;
    out->op = op_;
    out->what.assign(what_, what_bytes_);
    out->number = number_;
    out->state = state_;
    const int64_t end = state_ == RecordedCall::kRunning ? now : end_;
    out->seconds = static_cast<double>(end - begin_) / 1e9;
    out->ago = static_cast<double>(now - end) / 1e9;
    return true;
  }

 private:
  template <typename F>
  absl::Status Note(const char* op, absl::string_view what, const F& call) {
    {
      absl::MutexLock lock(&mutex_);
      // After a failure the group is of no use, and what it failed in is what counts.
      if (state_ != RecordedCall::kFailed) {
        op_ = op;
        what_bytes_ = std::min(what.size(), sizeof(what_));
        std::memcpy(what_, what.data(), what_bytes_);
        ++number_;
        state_ = RecordedCall::kRunning;
        begin_ = NowNanos();
      }
    }
    absl::Status status = call();
    absl::MutexLock lock(&mutex_);
    if (state_ == RecordedCall::kRunning) {
      state_ = status.ok() ? RecordedCall::kDone : RecordedCall::kFailed;
      end_ = NowNanos();
    }
    return status;
  }

  Communicator* const inner_;
  mutable absl::Mutex mutex_;
  const char* op_ ABSL_GUARDED_BY(mutex_) = "";
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
