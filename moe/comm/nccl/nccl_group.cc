#include "moe/comm/nccl/nccl_group.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "moe/base/running_time.h"
#include "moe/base/status.h"
#include "moe/comm/compute_gate.h"
#include "moe/device/cuda/cuda.h"

namespace moe::comm {
namespace {

constexpr size_t kTracked = 64;  // calls that are watched at once; of more the oldest
constexpr absl::Duration kLastWork = absl::Seconds(5);

const char* At(const void* p, int64_t bytes) { return static_cast<const char*>(p) + bytes; }
char* At(void* p, int64_t bytes) { return static_cast<char*>(p) + bytes; }

// NCCL works on the device of the calling thread.
class OnDevice {
 public:
  explicit OnDevice(int ordinal) {
    cudaGetDevice(&before_);
    if (before_ != ordinal) cudaSetDevice(ordinal);
  }
  ~OnDevice() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

bool IsCapturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(stream, &status) == cudaSuccess && status != cudaStreamCaptureStatusNone;
}

// Waits as a thread of a rank does: at first awake, then without its token.
class Patience {
 public:
  void Wait() {
    if (++turns_ < 64) {
      std::this_thread::yield();
      return;
    }
    if (released_ == nullptr) released_ = std::make_unique<ComputeGate::Released>();
    absl::SleepFor(absl::Microseconds(std::min(200, turns_ - 44)));
  }

 private:
  int turns_ = 0;
  std::unique_ptr<ComputeGate::Released> released_;
};

}  // namespace

ncclDataType_t NcclType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return ncclFloat32;
    case DType::kF64:
      return ncclFloat64;
    case DType::kBF16:
      return ncclBfloat16;
    case DType::kF16:
      return ncclFloat16;
    case DType::kS32:
      return ncclInt32;
    case DType::kS64:
      return ncclInt64;
    case DType::kPred:
    case DType::kF8E4M3:
      break;
  }
  return ncclUint8;
}

NcclGroup::NcclGroup(const NcclApi* nccl, Store* store, std::string name, std::vector<int64_t> ranks, int me,
                     const NcclOptions& options)
    : nccl_(nccl),
      store_(store),
      name_(std::move(name)),
      ranks_(std::move(ranks)),
      me_(me),
      options_(options),
      parts_(ranks_.size()),
      sources_(ranks_.size()),
      given_(kTracked) {
  uses_.reserve(2 * ranks_.size());
}

NcclGroup::~NcclGroup() {
  absl::MutexLock lock(&mutex_);
  const absl::Duration deadline = RunningTime() + kLastWork;
  for (Given& g : given_) {
    while (failed_.ok() && g.waiting && cudaEventQuery(g.event) == cudaErrorNotReady &&
           RunningTime() < deadline) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    if (g.event != nullptr) cudaEventDestroy(g.event);
  }
  // The own work is done, and with it what the others need of this rank. Ending in good order would wait for
  // them, and they may be this thread's to end.
  if (comm_ != nullptr) nccl_->CommAbort(comm_);
}

absl::Status NcclGroup::Bind(device::Stream* stream) {
  absl::MutexLock lock(&mutex_);
  const int ordinal = stream->device()->ordinal();
  if (comm_ != nullptr && ordinal != ordinal_) {
    return absl::FailedPreconditionError(absl::StrCat(GroupName(ranks_), " was formed on device ", ordinal_,
                                                      " and cannot work on device ", ordinal));
  }
  stream_ = stream;
  ordinal_ = ordinal;
  if (given_[0].event == nullptr) {
    const OnDevice on(ordinal_);
    for (Given& g : given_) {
      RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&g.event, cudaEventDisableTiming));
    }
  }
  return absl::OkStatus();
}

absl::Status NcclGroup::Connect(const ncclUniqueId& id) {
  absl::MutexLock lock(&mutex_);
  const OnDevice on(ordinal_);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const ncclResult_t result = nccl_->CommInitRankConfig(&comm_, size(), id, me_, &config);
  if (result != ncclSuccess && result != ncclInProgress) return Fail(ErrorOf(result));
  return absl::OkStatus();
}

absl::Status NcclGroup::ErrorOf(ncclResult_t result) {
  const char* const last = comm_ == nullptr ? nullptr : nccl_->GetLastError(comm_);
  const std::string text = absl::StrCat("NCCL says in ", GroupName(ranks_), ", rank ", ranks_[me_],
                                        ", device ", ordinal_, ": ", nccl_->GetErrorString(result),
                                        last == nullptr || *last == 0 ? "" : ": ", last ? last : "");
  switch (result) {
    case ncclRemoteError:
      return absl::UnavailableError(text);
    case ncclInvalidArgument:
    case ncclInvalidUsage:
      return absl::InvalidArgumentError(text);
    default:
      return absl::InternalError(text);
  }
}

absl::Status NcclGroup::Fail(absl::Status status) {
  if (!failed_.ok()) return failed_;
  failed_ = std::move(status);
  if (comm_ != nullptr) {
    const OnDevice on(ordinal_);
    nccl_->CommAbort(comm_);
    comm_ = nullptr;
  }
  return failed_;
}

void NcclGroup::Abort(absl::Status reason) {
  absl::MutexLock lock(&mutex_);
  Fail(absl::AbortedError(absl::StrCat(GroupName(ranks_), " was aborted: ", reason.ToString())))
      .IgnoreError();
}

absl::Status NcclGroup::Poll(bool* in_progress) {
  *in_progress = false;
  if (!failed_.ok()) return failed_;
  if (comm_ == nullptr) return absl::OkStatus();
  ncclResult_t state = ncclSuccess;
  const ncclResult_t asked = nccl_->CommGetAsyncError(comm_, &state);
  if (asked != ncclSuccess) state = asked;
  *in_progress = state == ncclInProgress;
  return state == ncclSuccess || state == ncclInProgress ? absl::OkStatus() : Fail(ErrorOf(state));
}

absl::Status NcclGroup::Check() {
  absl::MutexLock lock(&mutex_);
  bool in_progress;
  return Poll(&in_progress);
}

absl::Status NcclGroup::Watch() {
  std::string late;
  uint64_t number = 0;
  absl::Duration waited;
  {
    absl::MutexLock lock(&mutex_);
    bool in_progress;
    if (!Poll(&in_progress).ok()) return absl::OkStatus();  // known already
    const absl::Duration now = RunningTime();
    Given* oldest = nullptr;
    for (Given& g : given_) {
      if (!g.waiting) continue;
      const cudaError_t e = cudaEventQuery(g.event);
      g.waiting = e == cudaErrorNotReady;
      if (g.waiting && g.deadline.at() < (oldest == nullptr ? now : oldest->deadline.at())) {
        oldest = &g;
      } else if (e != cudaSuccess && e != cudaErrorNotReady) {
        Fail(cuda::StatusOf(e, absl::StrCat(g.text, " in ", GroupName(ranks_)))).IgnoreError();
        return absl::OkStatus();
      }
    }
    if (oldest == nullptr || oldest->deadline.Extend()) return absl::OkStatus();
    late = oldest->text;
    number = oldest->number;
    waited = oldest->deadline.limit();
  }
  absl::Status why = ExplainTimeout(late, number, waited);
  absl::MutexLock lock(&mutex_);
  return Fail(std::move(why));
}

absl::Status NcclGroup::AwaitTaken(PeerDeadline& deadline) {
  Patience patience;
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      bool in_progress;
      RETURN_IF_ERROR(Poll(&in_progress));
      if (!in_progress) return absl::OkStatus();
    }
    if (RunningTime() > deadline.at() && !deadline.Extend()) return absl::DeadlineExceededError("");
    patience.Wait();
  }
}

absl::Status NcclGroup::Give(absl::Span<const device::MemoryUse> uses,
                             const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& calls) {
  stream_->Uses("", uses);
  {
    absl::MutexLock lock(&mutex_);
    if (!failed_.ok()) return failed_;
    const OnDevice on(ordinal_);
    ncclResult_t result = nccl_->GroupStart();
    if (result == ncclSuccess) {
      result = calls(comm_, native());
      const ncclResult_t ended = nccl_->GroupEnd();
      if (result == ncclSuccess || result == ncclInProgress) result = ended;
    }
    if (result != ncclSuccess && result != ncclInProgress) return Fail(ErrorOf(result));
  }
  return AwaitTaken(deadline_);
}

absl::Status NcclGroup::ExplainTimeout(const std::string& text, uint64_t number, absl::Duration waited) {
  const auto key = [&](int member) { return absl::StrCat(name_, "/late/", number, "/", member); };
  // The others notice at about the same time, if they are there.
  const absl::Duration grace = std::clamp(options_.timeout / 2, absl::Milliseconds(100), absl::Seconds(5));
  store_->Set(key(me_), text).IgnoreError();
  const absl::Duration deadline = RunningTime() + grace;
  std::vector<std::string> in;
  std::vector<int64_t> missing;
  for (int p = 0; p < size(); ++p) {
    const absl::StatusOr<std::string> theirs =
        p == me_ ? text : store_->Get(key(p), std::max(deadline - RunningTime(), absl::ZeroDuration()));
    if (!theirs.ok()) {
      missing.push_back(ranks_[p]);
    } else if (*theirs != text) {
      return absl::FailedPreconditionError(absl::StrCat("calls of ", GroupName(ranks_),
                                                        " do not match: rank ", ranks_[me_], " is in ", text,
                                                        ", rank ", ranks_[p], " in ", *theirs));
    } else {
      in.push_back(absl::StrCat("rank ", ranks_[p], " in ", *theirs));
    }
  }
  const std::string wait = absl::StrCat(GroupName(ranks_), " waited ", absl::FormatDuration(waited), " for ");
  if (missing.empty()) {
    return absl::DeadlineExceededError(
        absl::StrCat(wait, "NCCL, though all are there: ", absl::StrJoin(in, ", ")));
  }
  return absl::DeadlineExceededError(absl::StrCat(wait, "all to enter; ", absl::StrJoin(in, ", "),
                                                  "; never entered: ", absl::StrJoin(missing, ", ")));
}

absl::StatusOr<char*> NcclGroup::Scratch(int64_t bytes) {
  if (scratch_ == nullptr || scratch_->bytes() < bytes) {
    if (scratch_ != nullptr) RETURN_IF_ERROR(stream_->Synchronize());
    scratch_ = nullptr;
    ASSIGN_OR_RETURN(scratch_, stream_->device()->Allocate(bytes));
  }
  return scratch_->data();
}

absl::Status NcclGroup::Run(const Call& call) {
  RETURN_IF_ERROR(CheckCall(call, ranks_, me_));
  if (size() == 1) {
    {
      absl::MutexLock lock(&mutex_);
      if (!failed_.ok()) return failed_;
    }
    return RunAlone(call);
  }
  PeerDeadline connecting(options_.connect_timeout, options_.pulse);
  absl::Status status = AwaitTaken(connecting);
  const bool met = status.ok(), message = IsMessage(call);
  if (!message) ++number_;
  deadline_ = PeerDeadline(options_.timeout, options_.pulse);
  if (met) status = GiveCall(call);
  const std::string text = message ? MessageToString(call, ranks_, me_) : CallToString(call);
  if (absl::IsDeadlineExceeded(status) && status.message().empty()) {
    const absl::Duration waited = met ? deadline_.limit() : connecting.limit();
    absl::Status why = message
                           ? absl::DeadlineExceededError(absl::StrCat(
                                 text, " in ", GroupName(ranks_), " waited ", absl::FormatDuration(waited),
                                 "; rank ", ranks_[call.peer], " never came, or came with another size"))
                           : ExplainTimeout(text, number_, waited);
    absl::MutexLock lock(&mutex_);
    return Fail(std::move(why));
  }
  RETURN_IF_ERROR(status);
  Track(text);
  return absl::OkStatus();
}

void NcclGroup::Track(const std::string& text) {
  if (IsCapturing(native())) return;
  absl::MutexLock lock(&mutex_);
  for (Given& g : given_) {
    if (g.waiting && cudaEventQuery(g.event) == cudaErrorNotReady) continue;
    g.waiting = cudaEventRecord(g.event, native()) == cudaSuccess;
    g.text = text;
    g.number = number_;
    g.deadline = PeerDeadline(options_.timeout, options_.pulse);
    return;
  }
}

absl::Status NcclGroup::RunAlone(const Call& call) {
  if (call.op == Call::kBarrier) return stream_->Synchronize();
  const int64_t count = CallExtents(call, me_, size()).second;
  if (count == 0 || call.in == call.out) return absl::OkStatus();
  return stream_->Copy(call.out, call.in, count * ByteSize(call.dtype));
}

absl::Status NcclGroup::ExchangeParts(DType dtype) {
  const Part& own = parts_[me_];
  if (own.receive_count > 0 && own.receive != own.send) {
    RETURN_IF_ERROR(stream_->Copy(own.receive, own.send, own.receive_count * ByteSize(dtype)));
  }
  uses_.clear();
  for (int p = 0; p < size(); ++p) {
    const Part& part = parts_[p];
    if (p == me_) continue;
    if (part.send_count > 0) uses_.push_back({part.send, part.send_count * ByteSize(dtype), false});
    if (part.receive_count > 0) uses_.push_back({part.receive, part.receive_count * ByteSize(dtype), true});
  }
  if (uses_.empty()) return absl::OkStatus();
  const ncclDataType_t type = NcclType(dtype);
  return Give(uses_, [this, type](ncclComm_t comm, cudaStream_t stream) {
    ncclResult_t result = ncclSuccess;
    for (int p = 0; p < size() && result == ncclSuccess; ++p) {
      const Part& part = parts_[p];
      if (p == me_) continue;
      if (part.send_count > 0) result = nccl_->Send(part.send, part.send_count, type, p, comm, stream);
      if (part.receive_count > 0 && result == ncclSuccess) {
        result = nccl_->Recv(part.receive, part.receive_count, type, p, comm, stream);
      }
    }
    return result;
  });
}

// Every member gets the others' contributions to its part, and adds them in ascending rank.
absl::Status NcclGroup::ReduceInOrder(const Call& call) {
  const int64_t element = ByteSize(call.dtype);
  const auto part = [&](int p) { return SendRange(call, me_, p, size()); };  // what `p` adds
  const int64_t mine = part(me_).count, stride = (mine * element + 255) / 256 * 256;
  ASSIGN_OR_RETURN(char* const scratch, Scratch(std::max<int64_t>(1, stride * size())));
  for (int p = 0; p < size(); ++p) {
    parts_[p] = {At(call.in, part(p).begin * element), part(p).count, scratch + p * stride, mine};
    sources_[p] = p == me_ ? parts_[p].send : parts_[p].receive;
  }
  parts_[me_] = {};
  RETURN_IF_ERROR(ExchangeParts(call.dtype));
  char* const sum = At(call.out, ReceiveRange(call, me_, me_, size()).begin * element);
  if (mine > 0) RETURN_IF_ERROR(stream_->Reduce(sources_, sum, mine, call.dtype, call.kind));
  if (call.op != Call::kAllReduce) return absl::OkStatus();
  for (int p = 0; p < size(); ++p)
    parts_[p] = {sum, mine, At(call.out, part(p).begin * element), part(p).count};
  return ExchangeParts(call.dtype);
}

absl::Status NcclGroup::GiveCall(const Call& call) {
  if (call.op == Call::kBarrier) return Barrier(call);
  const int n = size();
  const auto [in, out] = CallExtents(call, me_, n);
  if (in + out == 0) return absl::OkStatus();
  const int64_t element = ByteSize(call.dtype);
  const ncclDataType_t type = NcclType(call.dtype);
  const ncclRedOp_t op = call.kind == Reduction::kMax ? ncclMax : ncclSum;
  // One addition of two is rounded once wherever it is done.
  const bool rounds =
      (call.dtype == DType::kBF16 || call.dtype == DType::kF16) && call.kind == Reduction::kSum && n > 2;
  if (Reduces(call) && (rounds || options_.canonical_order || call.op == Call::kReduceScatterV)) {
    return ReduceInOrder(call);
  }
  if (call.op == Call::kAllGatherV || call.op == Call::kAllToAll || call.op == Call::kAllToAllV) {
    for (int p = 0; p < n; ++p) {
      const Range from = SendRange(call, me_, p, n), to = ReceiveRange(call, me_, p, n);
      parts_[p] = {At(call.in, from.begin * element), from.count, At(call.out, to.begin * element), to.count};
    }
    return ExchangeParts(call.dtype);
  }
  uses_.clear();
  if (in > 0) uses_.push_back({call.in, in * element, false});
  if (out > 0) uses_.push_back({call.out, out * element, true});
  return Give(uses_, [&](ncclComm_t comm, cudaStream_t stream) {
    switch (call.op) {
      case Call::kAllReduce:
        return nccl_->AllReduce(call.in, call.out, call.count, type, op, comm, stream);
      case Call::kReduceScatter:
        return nccl_->ReduceScatter(call.in, call.out, call.count, type, op, comm, stream);
      case Call::kAllGather:
        return nccl_->AllGather(call.in, call.out, call.count, type, comm, stream);
      case Call::kBroadcast:
        return nccl_->Broadcast(call.in, call.out, call.count, type, call.peer, comm, stream);
      case Call::kSend:
        return nccl_->Send(call.in, call.count, type, call.peer, comm, stream);
      case Call::kReceive:
        return nccl_->Recv(call.out, call.count, type, call.peer, comm, stream);
      default:
        return ncclInvalidUsage;
    }
  });
}

// Nobody passes before all are there: the host waits for the work itself.
absl::Status NcclGroup::Barrier(const Call& call) {
  ASSIGN_OR_RETURN(char* const word, Scratch(sizeof(int32_t)));
  RETURN_IF_ERROR(stream_->Fill(word, 0, sizeof(int32_t)));
  RETURN_IF_ERROR(Give({{word, sizeof(int32_t), true}}, [&](ncclComm_t comm, cudaStream_t stream) {
    return nccl_->AllReduce(word, word, 1, ncclInt32, ncclSum, comm, stream);
  }));
  if (IsCapturing(native())) return absl::OkStatus();
  Track(CallToString(call));
  Patience patience;
  for (;;) {
    const cudaError_t e = cudaStreamQuery(native());
    if (e != cudaErrorNotReady) return cuda::StatusOf(e, "barrier");
    bool in_progress;
    {
      absl::MutexLock lock(&mutex_);
      RETURN_IF_ERROR(Poll(&in_progress));
    }
    if (RunningTime() > deadline_.at() && !deadline_.Extend()) return absl::DeadlineExceededError("");
    patience.Wait();
  }
}

}  // namespace moe::comm
