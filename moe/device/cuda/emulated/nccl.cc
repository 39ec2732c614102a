#include "nccl.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

enum Kind { kAllReduce, kReduceScatter, kAllGather, kBroadcast, kSend, kReceive };

struct Op {
  Kind kind;
  const void* in;
  void* out;
  size_t count;
  ncclDataType_t type;
  ncclRedOp_t reduction;
  int other;  // root or peer
  bool done = false;

  size_t bytes() const;
};

size_t Size(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclFloat64:
      return 8;
  }
  return 0;
}
size_t Op::bytes() const { return count * Size(type); }

// One group of calls of one communicator: done when all of them are.
using Batch = std::vector<Op>;

struct Clique;

}  // namespace

struct ncclComm {
  std::shared_ptr<Clique> clique;
  int rank = 0, device = 0;
  bool blocking = true;
  cudaStream_t stream = nullptr;
  // Guarded by the clique's mutex.
  std::shared_ptr<Batch> batch;  // that is in progress
  ncclResult_t error = ncclSuccess;
  std::string last_error;
  uint64_t collectives = 0;  // begun
};

namespace {

// All that the ranks of one id share.
struct Clique {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<ncclComm*> members;  // null: not come yet, or gone
  std::vector<int> devices;
  int joined = 0;
  std::map<uint64_t, std::vector<Op*>> collectives;                // by number, then member
  std::map<std::pair<int, int>, std::deque<Op*>> sends, receives;  // by source and destination

  int size() const { return static_cast<int>(members.size()); }
  bool complete() const { return joined == size(); }
};

struct Registry {
  std::mutex mutex;
  uint64_t next = 1;
  std::map<std::string, std::shared_ptr<Clique>> cliques;
  std::map<int, ncclResult_t> failures;  // by rank
};
Registry& TheRegistry() {
  static Registry& registry = *new Registry;
  return registry;
}
std::atomic<int> fake_version = 0;

struct Pending {
  ncclComm* comm;
  cudaStream_t stream;
  std::shared_ptr<Batch> batch;
};
thread_local int depth = 0;
thread_local std::vector<Pending> pending;
thread_local std::vector<ncclComm*> pending_inits;

float FromHalf(uint16_t x, bool bf16) {
  return bf16 ? std::bit_cast<float>(uint32_t{x} << 16) : static_cast<float>(std::bit_cast<_Float16>(x));
}
uint16_t ToHalf(float x, bool bf16) {
  if (!bf16) return std::bit_cast<uint16_t>(static_cast<_Float16>(x));
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 64);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename T>
T Combine(T a, T b, ncclRedOp_t op) {
  if (op == ncclMax) return a != a ? a : b != b ? b : std::max(a, b);
  if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
  } else {
    return a + b;
  }
}

// Begins with a rank that depends on the place, as a ring does.
template <typename T>
void Reduce(const std::vector<const void*>& in, void* out, size_t count, ncclRedOp_t op) {
  const size_t n = in.size();
  for (size_t i = 0; i < count; ++i) {
    const size_t first = (i / 64 + 1) % n;
    T sum = static_cast<const T*>(in[first])[i];
    for (size_t k = 1; k < n; ++k) sum = Combine(sum, static_cast<const T*>(in[(first + k) % n])[i], op);
    static_cast<T*>(out)[i] = sum;
  }
}
void ReduceHalf(const std::vector<const void*>& in, void* out, size_t count, ncclRedOp_t op, bool bf16) {
  const size_t n = in.size();
  for (size_t i = 0; i < count; ++i) {
    const auto value = [&](size_t k) { return FromHalf(static_cast<const uint16_t*>(in[k % n])[i], bf16); };
    const size_t first = (i / 64 + 1) % n;
    float sum = value(first);
    for (size_t k = 1; k < n; ++k) sum = FromHalf(ToHalf(Combine(sum, value(first + k), op), bf16), bf16);
    static_cast<uint16_t*>(out)[i] = ToHalf(sum, bf16);
  }
}
void Reduce(const std::vector<const void*>& in, void* out, size_t count, ncclDataType_t type,
            ncclRedOp_t op) {
  switch (type) {
    case ncclFloat32:
      return Reduce<float>(in, out, count, op);
    case ncclFloat64:
      return Reduce<double>(in, out, count, op);
    case ncclInt32:
      return Reduce<int32_t>(in, out, count, op);
    case ncclInt64:
      return Reduce<int64_t>(in, out, count, op);
    case ncclInt8:
      return Reduce<int8_t>(in, out, count, op);
    case ncclUint8:
      return Reduce<uint8_t>(in, out, count, op);
    case ncclFloat16:
    case ncclBfloat16:
      return ReduceHalf(in, out, count, op, type == ncclBfloat16);
  }
}

void Move(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memmove(to, from, bytes);
}
const char* At(const void* p, size_t bytes) { return static_cast<const char*>(p) + bytes; }

bool Fit(const std::vector<Op*>& ops) {
  return std::all_of(ops.begin(), ops.end(), [&](const Op* op) {
    const Op& first = *ops[0];
    return op->kind == first.kind && op->count == first.count && op->type == first.type &&
           op->reduction == first.reduction && (op->kind != kBroadcast || op->other == first.other);
  });
}

void DoCollective(const std::vector<Op*>& ops) {
  const size_t n = ops.size(), bytes = ops[0]->bytes(), count = ops[0]->count;
  std::vector<const void*> in(n);
  if (ops[0]->kind == kAllReduce) {
    for (size_t r = 0; r < n; ++r) in[r] = ops[r]->in;
    std::vector<char> sum(bytes);
    Reduce(in, sum.data(), count, ops[0]->type, ops[0]->reduction);
    for (Op* op : ops) Move(op->out, sum.data(), bytes);
  } else if (ops[0]->kind == kReduceScatter) {
    std::vector<std::vector<char>> sums(n, std::vector<char>(bytes));
    for (size_t to = 0; to < n; ++to) {
      for (size_t r = 0; r < n; ++r) in[r] = At(ops[r]->in, to * bytes);
      Reduce(in, sums[to].data(), count, ops[0]->type, ops[0]->reduction);
    }
    for (size_t to = 0; to < n; ++to) Move(ops[to]->out, sums[to].data(), bytes);
  } else if (ops[0]->kind == kAllGather) {
    std::vector<char> all(n * bytes);
    for (size_t r = 0; r < n; ++r) Move(all.data() + r * bytes, ops[r]->in, bytes);
    for (Op* op : ops) Move(op->out, all.data(), n * bytes);
  } else {
    const std::vector<char> data(At(ops[ops[0]->other]->in, 0), At(ops[ops[0]->other]->in, bytes));
    for (Op* op : ops) Move(op->out, data.data(), bytes);
  }
  for (Op* op : ops) op->done = true;
}

// What can be done now. The mutex of the clique is held.
void Progress(Clique& clique) {
  if (!clique.complete()) return;
  for (auto it = clique.collectives.begin(); it != clique.collectives.end();) {
    const std::vector<Op*>& ops = it->second;
    const bool all = std::none_of(ops.begin(), ops.end(), [](Op* op) { return op == nullptr; });
    if (!all || !Fit(ops)) break;  // the next ones wait for it, for ever if it does not fit
    DoCollective(ops);
    it = clique.collectives.erase(it);
  }
  for (auto& [pair, sends] : clique.sends) {
    std::deque<Op*>& receives = clique.receives[pair];
    while (!sends.empty() && !receives.empty() && sends.front()->bytes() == receives.front()->bytes()) {
      Move(receives.front()->out, sends.front()->in, sends.front()->bytes());
      sends.front()->done = receives.front()->done = true;
      sends.pop_front();
      receives.pop_front();
    }
  }
  clique.changed.notify_all();
}

bool InProgress(ncclComm* comm) {
  if (!comm->clique->complete()) return true;
  if (comm->batch == nullptr) return false;
  if (!std::all_of(comm->batch->begin(), comm->batch->end(), [](const Op& op) { return op.done; }))
    return true;
  comm->batch = nullptr;
  return false;
}

void Forget(Clique& clique, const Batch& batch) {
  const auto ours = [&](Op* op) {
    return !batch.empty() && op >= batch.data() && op < batch.data() + batch.size();
  };
  for (auto& [number, ops] : clique.collectives) {
    for (Op*& op : ops) {
      if (op != nullptr && ours(op)) op = nullptr;
    }
  }
  for (auto* queues : {&clique.sends, &clique.receives}) {
    for (auto& [pair, ops] : *queues) ops.erase(std::remove_if(ops.begin(), ops.end(), ours), ops.end());
  }
}

ncclResult_t Failed(ncclComm* comm, ncclResult_t error, std::string text) {
  comm->last_error = std::move(text);
  return error;
}

// Gives the calls of one group to the clique.
ncclResult_t Post(ncclComm* comm, const std::shared_ptr<Batch>& batch) {
  Clique& clique = *comm->clique;
  if (comm->error != ncclSuccess) return comm->error;
  if (InProgress(comm)) {
    return Failed(comm, ncclInvalidArgument, "the communicator's last call is still in progress");
  }
  {
    Registry& registry = TheRegistry();
    const std::lock_guard<std::mutex> lock(registry.mutex);
    if (const auto it = registry.failures.find(comm->rank); it != registry.failures.end()) {
      comm->error = it->second;
      comm->last_error = "a failure that a test asked for";
      registry.failures.erase(it);
      return ncclInProgress;
    }
  }
  comm->batch = batch;
  for (Op& op : *batch) {
    if (op.kind == kSend) {
      clique.sends[{comm->rank, op.other}].push_back(&op);
    } else if (op.kind == kReceive) {
      clique.receives[{op.other, comm->rank}].push_back(&op);
    } else {
      std::vector<Op*>& ops = clique.collectives[comm->collectives++];
      ops.resize(clique.size());
      ops[comm->rank] = &op;
    }
  }
  Progress(clique);
  return ncclSuccess;
}

ncclResult_t Await(ncclComm* comm, std::unique_lock<std::mutex>& lock) {
  comm->clique->changed.wait(lock, [&] { return comm->error != ncclSuccess || !InProgress(comm); });
  return comm->error;
}

ncclResult_t Begin(const Pending& p) {
  ncclComm* const comm = p.comm;
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(p.stream, &capturing);
  if (capturing == cudaStreamCaptureStatusActive) {
    const cudaError_t e = emulated::Enqueue(p.stream, [comm, ops = *p.batch] {
      std::unique_lock<std::mutex> lock(comm->clique->mutex);
      const ncclResult_t posted = Post(comm, std::make_shared<Batch>(ops));
      if (posted != ncclSuccess && posted != ncclInProgress) return cudaErrorLaunchFailure;
      return Await(comm, lock) == ncclSuccess ? cudaSuccess : cudaErrorLaunchFailure;
    });
    return e == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
  }
  std::unique_lock<std::mutex> lock(comm->clique->mutex);
  const ncclResult_t posted = Post(comm, p.batch);
  if (posted != ncclSuccess && posted != ncclInProgress) return posted;
  if (comm->blocking) return Await(comm, lock);
  return InProgress(comm) || comm->error != ncclSuccess ? ncclInProgress : ncclSuccess;
}

ncclResult_t EndInit(ncclComm* comm) {
  std::unique_lock<std::mutex> lock(comm->clique->mutex);
  if (comm->blocking) return Await(comm, lock);
  return InProgress(comm) || comm->error != ncclSuccess ? ncclInProgress : ncclSuccess;
}

ncclResult_t Enqueue(ncclComm* comm, cudaStream_t stream, const Op& op) {
  if (comm == nullptr) return ncclInvalidArgument;
  const int peers = comm->clique->size();
  if ((op.kind == kSend || op.kind == kReceive || op.kind == kBroadcast) &&
      (op.other < 0 || op.other >= peers)) {
    const std::lock_guard<std::mutex> lock(comm->clique->mutex);
    return Failed(comm, ncclInvalidArgument, "there is no rank " + std::to_string(op.other));
  }
  if (depth == 0) return Begin({comm, stream, std::make_shared<Batch>(1, op)});
  for (Pending& p : pending) {
    if (p.comm == comm && p.stream == stream) {
      p.batch->push_back(op);
      return ncclSuccess;
    }
  }
  pending.push_back({comm, stream, std::make_shared<Batch>(1, op)});
  return ncclSuccess;
}

}  // namespace

namespace emulated {

void SetNcclVersion(int version) { fake_version = version; }
void FailNccl(int rank, ncclResult_t error) {
  Registry& registry = TheRegistry();
  const std::lock_guard<std::mutex> lock(registry.mutex);
  registry.failures[rank] = error;
}

}  // namespace emulated

ncclResult_t ncclGetVersion(int* version) {
  *version = fake_version != 0 ? fake_version.load() : NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  Registry& registry = TheRegistry();
  const std::lock_guard<std::mutex> lock(registry.mutex);
  std::memset(id, 0, sizeof(*id));
  const std::string text = "emulated " + std::to_string(registry.next++);
  std::memcpy(id->internal, text.data(), text.size());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  *comm = nullptr;
  if (ranks < 1 || rank < 0 || rank >= ranks) return ncclInvalidArgument;
  if (config != nullptr && (config->magic != 0xcafebeef || config->size == 0)) return ncclInvalidArgument;
  std::shared_ptr<Clique> clique;
  {
    Registry& registry = TheRegistry();
    const std::lock_guard<std::mutex> lock(registry.mutex);
    std::shared_ptr<Clique>& entry = registry.cliques[std::string(id.internal, sizeof(id.internal))];
    if (entry == nullptr) {
      entry = std::make_shared<Clique>();
      entry->members.resize(ranks);
      entry->devices.resize(ranks);
    }
    clique = entry;
  }
  auto* c = new ncclComm;
  c->clique = clique;
  c->rank = rank;
  c->blocking = config == nullptr || config->blocking != 0;
  cudaGetDevice(&c->device);
  {
    const std::lock_guard<std::mutex> lock(clique->mutex);
    if (clique->size() != ranks || clique->members[rank] != nullptr) {
      delete c;
      return ncclInvalidUsage;
    }
    clique->members[rank] = c;
    clique->devices[rank] = c->device;
    if (++clique->joined == ranks) {
      for (int a = 0; a < ranks; ++a) {
        for (int b = a + 1; b < ranks; ++b) {
          if (clique->devices[a] != clique->devices[b]) continue;
          for (ncclComm* member : clique->members) {
            if (member == nullptr) continue;
            member->error = ncclInvalidUsage;
            member->last_error = "Duplicate GPU detected : rank " + std::to_string(a) + " and rank " +
                                 std::to_string(b) + " both on CUDA device " +
                                 std::to_string(clique->devices[a]);
          }
        }
      }
    }
    Progress(*clique);
    clique->changed.notify_all();
  }
  *comm = c;
  if (depth > 0) {
    pending_inits.push_back(c);
    return ncclSuccess;
  }
  return EndInit(c);
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (comm == nullptr) return ncclSuccess;
  {
    const std::shared_ptr<Clique> clique = comm->clique;
    const std::lock_guard<std::mutex> lock(clique->mutex);
    if (comm->batch != nullptr) Forget(*clique, *comm->batch);
    clique->members[comm->rank] = nullptr;
  }
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) { return ncclCommAbort(comm); }

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case ncclSystemError:
      return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case ncclInternalError:
      return "internal error - please report this issue to the NCCL developers";
    case ncclInvalidArgument:
      return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case ncclInvalidUsage:
      return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
    default:
      return "unknown result code";
  }
}

const char* ncclGetLastError(ncclComm_t comm) { return comm == nullptr ? "" : comm->last_error.c_str(); }

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  const std::lock_guard<std::mutex> lock(comm->clique->mutex);
  *error = comm->error != ncclSuccess ? comm->error : InProgress(comm) ? ncclInProgress : ncclSuccess;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (depth == 0) return ncclInvalidUsage;
  if (--depth > 0) return ncclSuccess;
  const std::vector<Pending> all = std::move(pending);
  const std::vector<ncclComm*> inits = std::move(pending_inits);
  pending.clear();
  pending_inits.clear();
  ncclResult_t result = ncclSuccess;
  const auto merge = [&](ncclResult_t r) {
    if (r != ncclSuccess && (result == ncclSuccess || result == ncclInProgress)) result = r;
  };
  // Of one thread with several ranks all must have begun before one waits.
  std::vector<ncclComm*> blocking;
  for (ncclComm* comm : inits) {
    if (comm->blocking) {
      blocking.push_back(comm);
    } else {
      merge(EndInit(comm));
    }
  }
  for (const Pending& p : all) {
    if (!p.comm->blocking) {
      merge(Begin(p));
      continue;
    }
    p.comm->blocking = false;
    merge(Begin(p));
    p.comm->blocking = true;
    blocking.push_back(p.comm);
  }
  for (ncclComm* comm : blocking) {
    std::unique_lock<std::mutex> lock(comm->clique->mutex);
    const ncclResult_t r = Await(comm, lock);
    if (result == ncclInProgress) result = ncclSuccess;
    merge(r);
  }
  return result;
}

ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  return Enqueue(comm, stream, {kAllReduce, in, out, count, type, op, 0});
}
ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
  return Enqueue(comm, stream, {kReduceScatter, in, out, count, type, op, 0});
}
ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  return Enqueue(comm, stream, {kAllGather, in, out, count, type, ncclSum, 0});
}
ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  return Enqueue(comm, stream, {kBroadcast, in, out, count, type, ncclSum, root});
}
ncclResult_t ncclSend(const void* in, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return Enqueue(comm, stream, {kSend, in, nullptr, count, type, ncclSum, peer});
}
ncclResult_t ncclRecv(void* out, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return Enqueue(comm, stream, {kReceive, nullptr, out, count, type, ncclSum, peer});
}
