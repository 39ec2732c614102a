#include "moe/comm/in_process/group.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "moe/base/status.h"
#include "moe/comm/compute_gate.h"
#include "moe/comm/reduce.h"

namespace moe {
namespace {

constexpr const char* kOpNames[] = {"all_reduce",   "reduce_scatter", "reduce_scatter_v",
                                    "all_gather",   "all_gather_v",   "all_to_all",
                                    "all_to_all_v", "broadcast",      "barrier"};

using Pointers = absl::InlinedVector<const void*, 16>;

const char* At(const void* p, int64_t element, DType dtype) {
  return static_cast<const char*>(p) + element * ByteSize(dtype);
}
char* At(void* p, int64_t element, DType dtype) { return static_cast<char*>(p) + element * ByteSize(dtype); }

void Copy(void* to, const void* from, int64_t count, DType dtype) {
  if (count > 0 && to != from) std::memcpy(to, from, count * ByteSize(dtype));
}

int64_t Sum(absl::Span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

bool Reduces(Call::Op op) {
  return op == Call::kAllReduce || op == Call::kReduceScatter || op == Call::kReduceScatterV;
}

// Rank r of an all_reduce over n ranks reduces [begin, end). Whole cache lines, so that neighbours do not
// share one.
std::pair<int64_t, int64_t> Segment(int64_t count, int n, int r) {
  constexpr int64_t kLine = 64;
  const int64_t each = ((count + n - 1) / n + kLine - 1) / kLine * kLine;
  return {std::min(count, r * each), std::min(count, (r + 1) * each)};
}

// A call by itself. Two members may both be wrong, so this comes before they are compared.
absl::Status CheckCall(const Call& call, int size) {
  if (Reduces(call.op)) RETURN_IF_ERROR(CheckReducible(call.dtype, call.kind));
  if (call.count < 0) return absl::InvalidArgumentError("negative count");
  if (call.op == Call::kBroadcast && (call.root < 0 || call.root >= size)) {
    return absl::InvalidArgumentError(absl::StrCat("root ", call.root, " in a group of ", size));
  }
  const bool v =
      call.op == Call::kAllGatherV || call.op == Call::kReduceScatterV || call.op == Call::kAllToAllV;
  if (v && static_cast<int>(call.counts.size()) != size) {
    return absl::InvalidArgumentError(absl::StrCat(call.counts.size(), " counts in a group of ", size));
  }
  if (call.op == Call::kAllToAllV && static_cast<int>(call.receive_counts.size()) != size) {
    return absl::InvalidArgumentError(
        absl::StrCat(call.receive_counts.size(), " receive counts in a group of ", size));
  }
  for (const absl::Span<const int64_t> counts : {call.counts, call.receive_counts}) {
    for (int64_t n : counts) {
      if (n < 0) return absl::InvalidArgumentError("negative count");
    }
  }
  return absl::OkStatus();
}

bool SameShape(const Call& a, const Call& b) {
  if (a.op != b.op || a.dtype != b.dtype || a.what != b.what) return false;
  if (Reduces(a.op) && a.kind != b.kind) return false;
  if (a.op == Call::kBroadcast && a.root != b.root) return false;
  // The counts of all_to_all_v differ by design and are compared pairwise.
  if (a.op == Call::kAllGatherV || a.op == Call::kReduceScatterV) return a.counts == b.counts;
  return a.count == b.count;
}

class Member : public Communicator {
 public:
  Member(InProcessGroup* group, int rank) : group_(group), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }

  absl::Status AllReduce(const void* in, void* out, int64_t count, DType dtype, Reduction kind,
                         absl::string_view what) override {
    return group_->Run(rank_, {.op = Call::kAllReduce,
                               .dtype = dtype,
                               .kind = kind,
                               .count = count,
                               .in = in,
                               .out = out,
                               .what = what});
  }
  absl::Status ReduceScatter(const void* in, void* out, int64_t count, DType dtype, Reduction kind,
                             absl::string_view what) override {
    return group_->Run(rank_, {.op = Call::kReduceScatter,
                               .dtype = dtype,
                               .kind = kind,
                               .count = count,
                               .in = in,
                               .out = out,
                               .what = what});
  }
  absl::Status ReduceScatterV(const void* in, absl::Span<const int64_t> counts, void* out, DType dtype,
                              Reduction kind, absl::string_view what) override {
    return group_->Run(rank_, {.op = Call::kReduceScatterV,
                               .dtype = dtype,
                               .kind = kind,
                               .counts = counts,
                               .in = in,
                               .out = out,
                               .what = what});
  }
  absl::Status AllGather(const void* in, void* out, int64_t count, DType dtype,
                         absl::string_view what) override {
    return group_->Run(
        rank_, {.op = Call::kAllGather, .dtype = dtype, .count = count, .in = in, .out = out, .what = what});
  }
  absl::Status AllGatherV(const void* in, int64_t count, void* out, absl::Span<const int64_t> counts,
                          DType dtype, absl::string_view what) override {
    return group_->Run(rank_, {.op = Call::kAllGatherV,
                               .dtype = dtype,
                               .count = count,
                               .counts = counts,
                               .in = in,
                               .out = out,
                               .what = what});
  }
  absl::Status AllToAll(const void* in, void* out, int64_t count, DType dtype,
                        absl::string_view what) override {
    return group_->Run(
        rank_, {.op = Call::kAllToAll, .dtype = dtype, .count = count, .in = in, .out = out, .what = what});
  }
  absl::Status AllToAllV(const void* in, absl::Span<const int64_t> send_counts, void* out,
                         absl::Span<const int64_t> recv_counts, DType dtype,
                         absl::string_view what) override {
    return group_->Run(rank_, {.op = Call::kAllToAllV,
                               .dtype = dtype,
                               .counts = send_counts,
                               .receive_counts = recv_counts,
                               .in = in,
                               .out = out,
                               .what = what});
  }
  absl::Status Broadcast(void* data, int64_t count, DType dtype, int root, absl::string_view what) override {
    return group_->Run(rank_, {.op = Call::kBroadcast,
                               .dtype = dtype,
                               .count = count,
                               .root = root,
                               .in = data,
                               .out = data,
                               .what = what});
  }
  absl::Status Send(const void* data, int64_t bytes, int peer, int64_t tag, absl::string_view what) override {
    return group_->Exchange(rank_, true, const_cast<void*>(data), bytes, peer, tag, what);
  }
  absl::Status Recv(void* data, int64_t bytes, int peer, int64_t tag, absl::string_view what) override {
    return group_->Exchange(rank_, false, data, bytes, peer, tag, what);
  }
  absl::Status Barrier(absl::string_view what) override {
    return group_->Run(rank_, {.op = Call::kBarrier, .what = what});
  }
  void Abort(absl::Status reason) override { group_->Abort(std::move(reason)); }

 private:
  InProcessGroup* const group_;
  const int rank_;
};

}  // namespace

std::string CallToString(const Call& call) {
  std::vector<std::string> parts;
  if (Reduces(call.op)) parts.push_back(call.kind == Reduction::kSum ? "sum" : "max");
  if (call.op != Call::kBarrier) parts.push_back(std::string(DTypeName(call.dtype)));
  if (call.op == Call::kAllToAllV) {
    parts.push_back(absl::StrCat("send ", absl::StrJoin(call.counts, " ")));
    parts.push_back(absl::StrCat("receive ", absl::StrJoin(call.receive_counts, " ")));
  } else if (!call.counts.empty()) {
    parts.push_back(absl::StrCat("counts ", absl::StrJoin(call.counts, " ")));
  } else if (call.op != Call::kBarrier) {
    parts.push_back(absl::StrCat("count ", call.count));
  }
  if (call.op == Call::kBroadcast) parts.push_back(absl::StrCat("root ", call.root));
  return absl::StrCat(kOpNames[call.op], "(", absl::StrJoin(parts, ", "), ") for '", call.what, "'");
}

InProcessGroup::InProcessGroup(std::vector<int64_t> ranks, InProcessOptions options)
    : ranks_(std::move(ranks)), options_(options), calls_(ranks_.size()), entered_(ranks_.size(), false) {
  for (int i = 0; i < size(); ++i) members_.push_back(std::make_unique<Member>(this, i));
}

std::string InProcessGroup::Name() const { return absl::StrCat("group [", absl::StrJoin(ranks_, ", "), "]"); }

absl::Status InProcessGroup::Run(int rank, const Call& call) {
  if (absl::Status wrong = CheckCall(call, size()); !wrong.ok()) return Annotate(wrong, CallToString(call));
  uint64_t epoch;
  bool last, split;
  absl::Status status;
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
    split = status.ok() && size() > 1 && RoundBytes() > options_.small_bytes;
    if (status.ok() && !split) {
      for (int r = 0; r < size(); ++r) Share(r);
      if (call.op == Call::kAllReduce) {
        for (int r = 0; r < size(); ++r) Gather(r);
      }
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
  Share(rank);
  if (call.op == Call::kAllReduce) {
    FinishShare(rank, /*leave=*/false);
    Gather(rank);
  }
  FinishShare(rank, /*leave=*/true);
  return absl::OkStatus();
}

void InProcessGroup::NextEpoch() {
  arrived_ = 0;
  ++epoch_;
  epoch_changed_.SignalAll();
}

absl::Status InProcessGroup::WaitForRound(int rank, uint64_t epoch, bool* split) {
  *split = false;
  ComputeGate::Released released;  // outlives the lock
  absl::MutexLock lock(&mutex_);
  const absl::Time deadline = absl::Now() + options_.timeout;
  while (epoch_ == epoch) {
    if (formed_) {
      epoch_changed_.Wait(&mutex_);
      continue;
    }
    if (!failed_.ok()) {
      entered_[rank] = false;
      return failed_;
    }
    const bool timed_out = epoch_changed_.WaitWithDeadline(&mutex_, deadline);
    if (timed_out && epoch_ == epoch && !formed_ && failed_.ok()) Fail(TimeoutError());
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
  ComputeGate::Released released;
  absl::MutexLock lock(&mutex_);
  while (epoch_ == epoch) epoch_changed_.Wait(&mutex_);
  if (leave) entered_[rank] = false;
}

absl::Status InProcessGroup::CheckCalls() const {
  const auto mismatch = [&](int a, int b) {
    return absl::FailedPreconditionError(absl::StrCat("calls of ", Name(), " do not match: rank ", ranks_[a],
                                                      " is in ", CallToString(calls_[a]), ", rank ",
                                                      ranks_[b], " in ", CallToString(calls_[b])));
  };
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
  const int64_t n = size();
  int64_t elements = 0;
  for (const Call& call : calls_) {
    switch (call.op) {
      case Call::kAllReduce:
      case Call::kBroadcast:
        elements += call.count;
        break;
      case Call::kReduceScatter:
      case Call::kAllGather:
      case Call::kAllToAll:
        elements += n * call.count;
        break;
      case Call::kReduceScatterV:
      case Call::kAllGatherV:
      case Call::kAllToAllV:
        elements += Sum(call.counts);
        break;
      case Call::kBarrier:
        break;
    }
  }
  return elements * ByteSize(calls_[0].dtype);
}

void InProcessGroup::Share(int rank) const {
  const Call& me = calls_[rank];
  const DType dtype = me.dtype;
  const auto reduce = [&](int64_t begin, int64_t count, void* out) {
    Pointers in;
    for (const Call& call : calls_) in.push_back(At(call.in, begin, dtype));
    ReduceInOrder(in, out, count, dtype, me.kind);
  };
  switch (me.op) {
    case Call::kAllReduce: {
      const auto [begin, end] = Segment(me.count, size(), rank);
      reduce(begin, end - begin, At(me.out, begin, dtype));
      break;
    }
    case Call::kReduceScatter:
      reduce(rank * me.count, me.count, me.out);
      break;
    case Call::kReduceScatterV:
      reduce(Sum(me.counts.subspan(0, rank)), me.counts[rank], me.out);
      break;
    case Call::kAllGather:
      for (int p = 0; p < size(); ++p) Copy(At(me.out, p * me.count, dtype), calls_[p].in, me.count, dtype);
      break;
    case Call::kAllGatherV: {
      int64_t at = 0;
      for (int p = 0; p < size(); ++p) {
        Copy(At(me.out, at, dtype), calls_[p].in, me.counts[p], dtype);
        at += me.counts[p];
      }
      break;
    }
    case Call::kAllToAll:
      for (int p = 0; p < size(); ++p) {
        Copy(At(me.out, p * me.count, dtype), At(calls_[p].in, rank * me.count, dtype), me.count, dtype);
      }
      break;
    case Call::kAllToAllV: {
      int64_t at = 0;
      for (int p = 0; p < size(); ++p) {
        const int64_t from = Sum(calls_[p].counts.subspan(0, rank));
        Copy(At(me.out, at, dtype), At(calls_[p].in, from, dtype), me.receive_counts[p], dtype);
        at += me.receive_counts[p];
      }
      break;
    }
    case Call::kBroadcast:
      Copy(me.out, calls_[me.root].in, me.count, dtype);
      break;
    case Call::kBarrier:
      break;
  }
}

void InProcessGroup::Gather(int rank) const {
  const Call& me = calls_[rank];
  for (int p = 0; p < size(); ++p) {
    if (p == rank) continue;
    const auto [begin, end] = Segment(me.count, size(), p);
    Copy(At(me.out, begin, me.dtype), At(calls_[p].out, begin, me.dtype), end - begin, me.dtype);
  }
}

absl::Status InProcessGroup::Exchange(int rank, bool send, void* data, int64_t bytes, int peer, int64_t tag,
                                      absl::string_view what) {
  const auto describe = [&](bool send, int64_t bytes, int from, int to, absl::string_view what) {
    return absl::StrCat(send ? "send" : "receive", " of ", bytes, " bytes from rank ", ranks_[from],
                        " to rank ", ranks_[to], ", tag ", tag, ", for '", what, "'");
  };
  if (peer < 0 || peer >= size() || peer == rank || bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", ranks_[rank], " of ", Name(), ", '", what,
                                                   "': ", bytes, " bytes to or from group rank ", peer));
  }
  const int from = send ? rank : peer, to = send ? peer : rank;
  const std::tuple<int, int, int64_t> key(from, to, tag);
  Post* other = nullptr;
  Post mine;
  {
    absl::MutexLock lock(&mutex_);
    if (!failed_.ok()) return failed_;
    auto& queue = posts_[key];
    if (!queue.empty() && queue.front()->send != send) {
      other = queue.front();
      queue.erase(queue.begin());
      other->taken = true;
    } else {
      mine.send = send;
      mine.data = data;
      mine.bytes = bytes;
      mine.what = what;
      queue.push_back(&mine);
    }
  }
  if (other != nullptr) {
    absl::Status status;
    if (other->bytes == bytes) {
      if (bytes > 0) std::memcpy(send ? other->data : data, send ? data : other->data, bytes);
    } else {
      status =
          absl::FailedPreconditionError(absl::StrCat(describe(send, bytes, from, to, what), " meets ",
                                                     describe(!send, other->bytes, from, to, other->what)));
    }
    absl::MutexLock lock(&mutex_);
    other->status = status;
    other->done = true;
    other->changed.Signal();
    return status;
  }
  ComputeGate::Released released;
  absl::MutexLock lock(&mutex_);
  const absl::Time deadline = absl::Now() + options_.timeout;
  while (!mine.done) {
    if (mine.taken) {
      mine.changed.Wait(&mutex_);
      continue;
    }
    if (!failed_.ok()) {
      auto& queue = posts_[key];
      queue.erase(std::find(queue.begin(), queue.end(), &mine));
      return failed_;
    }
    const bool timed_out = mine.changed.WaitWithDeadline(&mutex_, deadline);
    if (timed_out && !mine.taken && failed_.ok()) {
      Fail(absl::DeadlineExceededError(absl::StrCat(describe(send, bytes, from, to, what), " in ", Name(),
                                                    " waited ", absl::FormatDuration(options_.timeout),
                                                    "; rank ", ranks_[peer], " never came")));
    }
  }
  return mine.status;
}

void InProcessGroup::Abort(absl::Status reason) {
  absl::MutexLock lock(&mutex_);
  if (failed_.ok()) Fail(absl::AbortedError(absl::StrCat(Name(), " was aborted: ", reason.ToString())));
}

void InProcessGroup::Fail(absl::Status reason) {
  failed_ = std::move(reason);
  epoch_changed_.SignalAll();
  for (auto& [key, queue] : posts_) {
    for (Post* post : queue) post->changed.SignalAll();
  }
}

absl::Status InProcessGroup::TimeoutError() const {
  std::vector<std::string> in;
  std::vector<int64_t> missing;
  for (int r = 0; r < size(); ++r) {
    if (entered_[r]) {
      in.push_back(absl::StrCat("rank ", ranks_[r], " in ", CallToString(calls_[r])));
    } else {
      missing.push_back(ranks_[r]);
    }
  }
  return absl::DeadlineExceededError(absl::StrCat(Name(), " waited ", absl::FormatDuration(options_.timeout),
                                                  " for all to enter; ", absl::StrJoin(in, ", "),
                                                  "; never entered: ", absl::StrJoin(missing, ", ")));
}

}  // namespace moe
