#include "moe/comm/in_process/group.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "moe/base/running_time.h"
#include "moe/base/status.h"
#include "moe/comm/compute_gate.h"
#include "moe/device/reduce.h"

namespace moe::comm {
namespace {

using Pointers = absl::InlinedVector<const void*, 16>;

const char* At(const void* p, int64_t element, DType dtype) {
  return static_cast<const char*>(p) + element * ByteSize(dtype);
}
char* At(void* p, int64_t element, DType dtype) { return static_cast<char*>(p) + element * ByteSize(dtype); }

// The two ways to do a round's work. Empty copies and copies in place cost nothing.
struct HostWork {
  void Copy(void* to, const void* from, int64_t count, DType dtype) {
    if (count > 0 && to != from) std::memcpy(to, from, count * ByteSize(dtype));
  }
  void Reduce(const Pointers& in, void* out, int64_t count, DType dtype, Reduction kind) {
    device::ReduceInOrder(in, out, count, dtype, kind);
  }
};

struct StreamWork {  // after the first error nothing more is done
  void Copy(void* to, const void* from, int64_t count, DType dtype) {
    if (count > 0 && to != from) status.Update(stream->Copy(to, from, count * ByteSize(dtype)));
  }
  void Reduce(const Pointers& in, void* out, int64_t count, DType dtype, Reduction kind) {
    if (count > 0) status.Update(stream->Reduce(in, out, count, dtype, kind));
  }
  device::Stream* stream;
  absl::Status status;
};

class Member : public Communicator {
 public:
  Member(InProcessGroup* group, int rank) : group_(group), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  absl::Status Run(const Call& call) override { return group_->Run(rank_, call); }
  void Abort(absl::Status reason) override { group_->Abort(std::move(reason)); }

 private:
  InProcessGroup* const group_;
  const int rank_;
};

}  // namespace

InProcessGroup::InProcessGroup(std::vector<int64_t> ranks, InProcessOptions options)
    : ranks_(std::move(ranks)),
      options_(options),
      sides_(ranks_.size()),
      calls_(ranks_.size()),
      entered_(ranks_.size(), false) {
  for (int i = 0; i < size(); ++i) members_.push_back(std::make_unique<Member>(this, i));
}

std::string InProcessGroup::Name() const { return GroupName(ranks_); }

absl::Status InProcessGroup::Bind(int rank, device::Stream* stream) {
  Side side;
  side.stream = stream;
  for (std::unique_ptr<device::Event>* event : {&side.entered, &side.done, &side.gathered}) {
    ASSIGN_OR_RETURN(*event, stream->device()->NewEvent());
  }
  absl::MutexLock lock(&mutex_);
  if (entered_[rank]) {
    return absl::FailedPreconditionError(
        absl::StrCat("rank ", ranks_[rank], " of ", Name(), " changes its stream during a call"));
  }
  if (sides_[rank].stream != stream) sides_[rank] = std::move(side);
  return absl::OkStatus();
}

template <typename Work>
void InProcessGroup::Share(int rank, Work& work) const {
  const Call& me = calls_[rank];
  const DType dtype = me.dtype;
  if (Reduces(me)) {
    const Range from = SendRange(me, rank, rank, size());
    Pointers in;
    for (const Call& call : calls_) in.push_back(At(call.in, from.begin, dtype));
    work.Reduce(in, At(me.out, ReceiveRange(me, rank, rank, size()).begin, dtype), from.count, dtype,
                me.kind);
    return;
  }
  for (int p = 0; p < size(); ++p) {
    const Range from = SendRange(calls_[p], p, rank, size()), to = ReceiveRange(me, rank, p, size());
    work.Copy(At(me.out, to.begin, dtype), At(calls_[p].in, from.begin, dtype), to.count, dtype);
  }
}

template <typename Work>
void InProcessGroup::Gather(int rank, Work& work) const {
  const Call& me = calls_[rank];
  for (int p = 0; p < size(); ++p) {
    if (p == rank) continue;
    const Range segment = SendRange(me, rank, p, size());
    work.Copy(At(me.out, segment.begin, me.dtype), At(calls_[p].out, segment.begin, me.dtype), segment.count,
              me.dtype);
  }
}

absl::Status InProcessGroup::Run(int rank, const Call& call) {
  RETURN_IF_ERROR(CheckCall(call, ranks_, rank));
  const Side& side = sides_[rank];
  if (side.stream != nullptr) RETURN_IF_ERROR(side.stream->Record(side.entered.get()));
  return IsMessage(call) ? Exchange(rank, call) : Collective(rank, call);
}

absl::Status InProcessGroup::Collective(int rank, const Call& call) {
  uint64_t epoch;
  bool last, split;
  absl::Status status;
  const Side& side = sides_[rank];
  {
    absl::MutexLock lock(&mutex_);
    if (!failed_.ok()) return failed_;
    if (entered_[rank]) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", ranks_[rank], " of ", Name(), " calls ", CallToString(call),
                       " while another of its threads is in ", CallToString(calls_[rank])));
    }
    calls_[rank] = call;
    entered_[rank] = true;
    epoch = epoch_;
    last = ++arrived_ == size();
    if (last) formed_ = true;
  }
  if (last) {
    status = CheckCalls();
    if (!on_streams()) {
      // Dividing the work pays only where somebody else can do his part at once.
      split =
          status.ok() && size() > 1 && RoundBytes() > options_.small_bytes && ComputeGate::HasIdleTokens();
      if (status.ok() && !split) DoAllOnHost();
    } else {
      split = status.ok() && std::any_of(sides_.begin(), sides_.end(), [&](const Side& other) {
                return other.stream->device() != side.stream->device();
              });
      if (status.ok() && !split) status = DoAllOnStream(rank);
    }
    absl::MutexLock lock(&mutex_);
    formed_ = false;
    round_status_ = status;
    split_ = split;
    entered_[rank] = split;
    NextEpoch();
  } else {
    status = WaitForRound(rank, epoch, &split);
  }
  if (!split) return status;
  if (on_streams()) return ShareOnStreams(rank);
  HostWork work;
  Share(rank, work);
  if (call.op == Call::kAllReduce) {
    FinishShare(rank, /*leave=*/false);
    Gather(rank, work);
  }
  FinishShare(rank, /*leave=*/true);
  return absl::OkStatus();
}

absl::Status InProcessGroup::ShareOnStreams(int rank) {
  Side& side = sides_[rank];
  StreamWork work{side.stream, absl::OkStatus()};
  // Errors do not keep the others waiting.
  for (const Side& other : sides_) {
    if (&other != &side) work.status.Update(side.stream->Wait(other.entered.get()));
  }
  Share(rank, work);
  work.status.Update(side.stream->Record(side.done.get()));
  const bool gathers = calls_[rank].op == Call::kAllReduce;
  FinishShare(rank, /*leave=*/false);
  for (const Side& other : sides_) {
    if (&other != &side) work.status.Update(side.stream->Wait(other.done.get()));
  }
  if (gathers) {
    Gather(rank, work);
    work.status.Update(side.stream->Record(side.gathered.get()));
    FinishShare(rank, /*leave=*/false);
    for (const Side& other : sides_) {
      if (&other != &side) work.status.Update(side.stream->Wait(other.gathered.get()));
    }
  }
  // No event is recorded again before all have waited for it.
  FinishShare(rank, /*leave=*/true);
  return work.status;
}

absl::Status InProcessGroup::DoAllOnStream(int rank) const {
  const Side& side = sides_[rank];
  for (const Side& other : sides_) {
    if (&other != &side) RETURN_IF_ERROR(side.stream->Wait(other.entered.get()));
  }
  StreamWork work{side.stream, absl::OkStatus()};
  const Call& first = calls_[0];
  if (first.op == Call::kAllReduce) {
    Pointers in;
    for (const Call& call : calls_) in.push_back(call.in);
    work.Reduce(in, first.out, first.count, first.dtype, first.kind);
    for (int r = 1; r < size(); ++r) work.Copy(calls_[r].out, first.out, first.count, first.dtype);
  } else {
    for (int r = 0; r < size(); ++r) Share(r, work);
  }
  RETURN_IF_ERROR(work.status);
  RETURN_IF_ERROR(side.stream->Record(side.done.get()));
  for (const Side& other : sides_) {
    if (&other != &side) RETURN_IF_ERROR(other.stream->Wait(side.done.get()));
  }
  return absl::OkStatus();
}

void InProcessGroup::NextEpoch() {
  arrived_ = 0;
  ++epoch_;
  epoch_changed_.NotifyAll();
}

absl::Status InProcessGroup::WaitForRound(int rank, uint64_t epoch, bool* split) {
  *split = false;
  bool late = false;
  Alarm alarm(RunningTime() + options_.timeout, [&] {
    absl::MutexLock lock(&mutex_);
    late = true;
    epoch_changed_.NotifyAll();
  });
  absl::MutexLock lock(&mutex_);
  while (epoch_ == epoch) {
    if (!formed_ && late && failed_.ok()) Fail(WaitedTooLong());
    if (!formed_ && !failed_.ok()) {
      entered_[rank] = false;
      return failed_;
    }
    epoch_changed_.Wait(&mutex_);
  }
  // Neither can change before this member enters the next round.
  *split = split_;
  entered_[rank] = split_;
  return round_status_;
}

void InProcessGroup::FinishShare(int rank, bool leave) {
  uint64_t epoch;
  {
    absl::MutexLock lock(&mutex_);
    epoch = epoch_;
    if (++arrived_ == size()) {
      if (leave) entered_[rank] = false;
      return NextEpoch();
    }
  }
  absl::MutexLock lock(&mutex_);
  while (epoch_ == epoch) epoch_changed_.Wait(&mutex_);
  if (leave) entered_[rank] = false;
}

absl::Status InProcessGroup::CheckCalls() const {
  const auto mismatch = [&](int a, int b) { return MismatchError(ranks_, a, calls_[a], b, calls_[b]); };
  for (int r = 1; r < size(); ++r) {
    if (!SameShape(calls_[0], calls_[r])) return mismatch(0, r);
  }
  for (int a = 0; a < size(); ++a) {
    if (calls_[a].op == Call::kAllGatherV && calls_[a].count != calls_[0].counts[a]) {
      return absl::FailedPreconditionError(absl::StrCat("rank ", ranks_[a], " of ", Name(), " gives ",
                                                        calls_[a].count, " elements to ",
                                                        CallToString(calls_[a])));
    }
    if (calls_[a].op != Call::kAllToAllV) continue;
    for (int b = 0; b < size(); ++b) {
      if (calls_[a].counts[b] != calls_[b].receive_counts[a]) return mismatch(a, b);
    }
  }
  return absl::OkStatus();
}

int64_t InProcessGroup::RoundBytes() const {
  int64_t elements = 0;
  for (int r = 0; r < size(); ++r) {
    const auto [in, out] = CallExtents(calls_[r], r, size());
    elements += std::max(in, out);
  }
  return elements * ByteSize(calls_[0].dtype);
}

void InProcessGroup::DoAllOnHost() const {
  HostWork work;
  const Call& first = calls_[0];
  if (first.op != Call::kAllReduce) {
    for (int r = 0; r < size(); ++r) Share(r, work);
    return;
  }
  // What is copied has just been written, and is still in the nearest cache.
  constexpr int64_t kElements = 2048;
  Pointers in(size());
  for (int64_t begin = 0; begin < first.count; begin += kElements) {
    const int64_t count = std::min(kElements, first.count - begin);
    for (int r = 0; r < size(); ++r) in[r] = At(calls_[r].in, begin, first.dtype);
    device::ReduceInOrder(in, At(first.out, begin, first.dtype), count, first.dtype, first.kind);
    for (int r = 1; r < size(); ++r) {
      work.Copy(At(calls_[r].out, begin, first.dtype), At(first.out, begin, first.dtype), count, first.dtype);
    }
  }
}

absl::Status InProcessGroup::Exchange(int rank, const Call& message) {
  const bool send = message.op == Call::kSend;
  const auto describe = [&](const Call& call, int rank) { return MessageToString(call, ranks_, rank); };
  const std::tuple<int, int, int64_t> key(send ? rank : message.peer, send ? message.peer : rank,
                                          message.tag);
  Post* other = nullptr;
  Post mine;
  {
    absl::MutexLock lock(&mutex_);
    if (!failed_.ok()) return failed_;
    auto& queue = posts_[key];
    if (!queue.empty() && queue.front()->call->op != message.op) {
      other = queue.front();
      queue.erase(queue.begin());
      other->taken = true;
    } else {
      mine.call = &message;
      mine.rank = rank;
      queue.push_back(&mine);
    }
  }
  if (other != nullptr) {
    absl::Status status;
    if (other->call->count == message.count) {
      if (message.count > 0) status = CopyMessage(rank, message, *other);
    } else {
      status = absl::FailedPreconditionError(
          absl::StrCat(describe(message, rank), " meets ", describe(*other->call, other->rank)));
    }
    absl::MutexLock lock(&mutex_);
    other->status = status;
    other->done = true;
    other->changed.NotifyAll();
    return status;
  }
  bool late = false;
  Alarm alarm(RunningTime() + options_.timeout, [&] {
    absl::MutexLock lock(&mutex_);
    late = true;
    mine.changed.NotifyAll();
  });
  absl::MutexLock lock(&mutex_);
  while (!mine.done) {
    if (!mine.taken && late && failed_.ok()) {
      Fail(absl::DeadlineExceededError(absl::StrCat(describe(message, rank), " in ", Name(), " waited ",
                                                    absl::FormatDuration(options_.timeout), "; rank ",
                                                    ranks_[message.peer], " never came")));
    }
    if (!mine.taken && !failed_.ok()) {
      auto& queue = posts_[key];
      queue.erase(std::find(queue.begin(), queue.end(), &mine));
      return failed_;
    }
    mine.changed.Wait(&mutex_);
  }
  return mine.status;
}

absl::Status InProcessGroup::CopyMessage(int rank, const Call& message, const Post& other) {
  const bool send = message.op == Call::kSend;
  void* const to = send ? other.call->out : message.out;
  const void* const from = send ? message.in : other.call->in;
  const Side& mine = sides_[rank];
  const Side& theirs = sides_[other.rank];
  if (mine.stream == nullptr) {
    std::memcpy(to, from, message.count);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(mine.stream->Wait(theirs.entered.get()));
  RETURN_IF_ERROR(mine.stream->Copy(to, from, message.count));
  RETURN_IF_ERROR(mine.stream->Record(mine.done.get()));
  return theirs.stream->Wait(mine.done.get());
}

void InProcessGroup::Abort(absl::Status reason) {
  absl::MutexLock lock(&mutex_);
  if (failed_.ok()) Fail(absl::AbortedError(absl::StrCat(Name(), " was aborted: ", reason.ToString())));
}

void InProcessGroup::Fail(absl::Status reason) {
  failed_ = std::move(reason);
  epoch_changed_.NotifyAll();
  for (auto& [key, queue] : posts_) {
    for (Post* post : queue) post->changed.NotifyAll();
  }
}

absl::Status InProcessGroup::WaitedTooLong() const {
  std::vector<const Call*> calls(size(), nullptr);
  for (int r = 0; r < size(); ++r) {
    if (entered_[r]) calls[r] = &calls_[r];
  }
  return TimeoutError(ranks_, options_.timeout, calls);
}

}  // namespace moe::comm
