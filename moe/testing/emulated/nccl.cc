#include "nccl.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
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
  // Of a call that was given.
  uint64_t number = 0;  // of a collective
  bool read = false;    // what the others gave was taken
  bool done = false;
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

// One group of calls of one communicator: done when all of them are.
using Batch = std::vector<Op>;

// What the ranks of one id share: a file of shared memory whose name is the id, with a table and, for each
// rank, room for the data of the calls that it has in progress. Whoever comes first makes the file; when the
// last has come, or one gives up before, its name is removed, so that the system frees it with the last
// process that has it.
constexpr int kMaxRanks = 32;
constexpr int kMaxOps = 2 * kMaxRanks;
constexpr size_t kRoom = size_t{1} << 30;  // of addresses; of memory, what is written

// A call of a rank, as the others see it.
struct Posted {
  Kind kind;
  ncclDataType_t type;
  ncclRedOp_t reduction;
  int other;
  uint64_t count, number, data;  // data: from the beginning of the rank's room
  int readers;                   // that have yet to take it

  size_t bytes() const { return count * Size(type); }
};

struct Member {
  bool taken;
  int ops;
  Posted op[kMaxOps];
  char gpu[96];  // host and device
};

struct Table {
  bool ready;
  pthread_mutex_t mutex;
  int size, joined;
  int duplicate[2];  // ranks on one device; equal: none
  Member member[kMaxRanks];
};
constexpr size_t kTableRoom = (sizeof(Table) + 65535) / 65536 * 65536;

}  // namespace

struct ncclComm {
  Table* table = nullptr;
  int file = -1;
  size_t mapped = 0, reserved = 0;  // reserved: of the own room, with memory behind it
  std::string name;
  int rank = 0, device = 0;
  bool blocking = true;
  // Guarded by the table's mutex.
  std::shared_ptr<Batch> batch;  // that is in progress
  ncclResult_t error = ncclSuccess;
  std::string last_error;
  uint64_t collectives = 0;  // begun

  int size() const { return table->size; }
  bool complete() const { return table->joined == table->size; }
  char* room(int r) const { return reinterpret_cast<char*>(table) + kTableRoom + r * kRoom; }
  const char* data(int r, const Posted& op) const { return room(r) + op.data; }
};

namespace {

// A process that dies with the lock leaves a table that is good for the others: they wait for it in vain.
class Lock {
 public:
  explicit Lock(ncclComm* comm) : mutex_(&comm->table->mutex) {
    if (pthread_mutex_lock(mutex_) == EOWNERDEAD) pthread_mutex_consistent(mutex_);
  }
  ~Lock() { pthread_mutex_unlock(mutex_); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  pthread_mutex_t* const mutex_;
};

struct Failures {
  std::mutex mutex;
  std::map<int, ncclResult_t> by_rank;
};
Failures& TheFailures() {
  static Failures& failures = *new Failures;
  return failures;
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

bool IsMessage(Kind kind) { return kind == kSend || kind == kReceive; }

bool Fit(const Posted& a, const Posted& b) {
  return a.kind == b.kind && a.count == b.count && a.type == b.type && a.reduction == b.reduction &&
         (a.kind != kBroadcast || a.other == b.other);
}

// The calls of all ranks that meet in collective `number`; empty if they have not all come, or do not fit.
std::vector<Posted*> Meet(ncclComm* comm, uint64_t number) {
  std::vector<Posted*> calls;
  for (int r = 0; r < comm->size(); ++r) {
    Member& member = comm->table->member[r];
    for (int i = 0; i < member.ops && calls.size() == static_cast<size_t>(r); ++i) {
      Posted& op = member.op[i];
      if (!IsMessage(op.kind) && op.number == number) calls.push_back(&op);
    }
    if (calls.size() != static_cast<size_t>(r) + 1 || !Fit(*calls[0], *calls[r])) return {};
  }
  return calls;
}

// The own result of a collective.
void Take(ncclComm* comm, const std::vector<Posted*>& calls, const Op& op) {
  const size_t n = calls.size(), bytes = op.count * Size(op.type);
  std::vector<const void*> in(n);
  for (size_t r = 0; r < n; ++r) in[r] = comm->data(static_cast<int>(r), *calls[r]);
  switch (op.kind) {
    case kReduceScatter:
      for (size_t r = 0; r < n; ++r) in[r] = At(in[r], comm->rank * bytes);
      [[fallthrough]];
    case kAllReduce:
      return Reduce(in, op.out, op.count, op.type, op.reduction);
    case kAllGather:
      for (size_t r = 0; r < n; ++r) Move(static_cast<char*>(op.out) + r * bytes, in[r], bytes);
      return;
    default:
      return Move(op.out, in[op.other], bytes);
  }
}

// What this rank can do now of its calls: others take what it gave when they ask. The lock is held.
void Progress(ncclComm* comm) {
  Table& table = *comm->table;
  if (comm->error == ncclSuccess && table.duplicate[0] != table.duplicate[1]) {
    comm->error = ncclInvalidUsage;
    comm->last_error = "Duplicate GPU detected : rank " + std::to_string(table.duplicate[0]) + " and rank " +
                       std::to_string(table.duplicate[1]) + " both on CUDA device " +
                       std::to_string(comm->device);
  }
  if (comm->error != ncclSuccess || comm->batch == nullptr || !comm->complete()) return;
  Member& mine = table.member[comm->rank];
  bool collectives_wait = false;  // for an earlier one
  std::vector<bool> sources_wait(comm->size());
  bool all = true;
  for (size_t i = 0; i < comm->batch->size(); ++i) {
    Op& op = (*comm->batch)[i];
    if (op.kind == kReceive) {
      Member& source = table.member[op.other];
      for (int k = 0; k < source.ops && !op.done && !sources_wait[op.other]; ++k) {
        Posted& send = source.op[k];
        if (send.kind != kSend || send.other != comm->rank || send.readers == 0) continue;
        if (send.bytes() != mine.op[i].bytes()) break;
        Move(op.out, comm->data(op.other, send), send.bytes());
        send.readers = 0;
        op.done = true;
      }
      sources_wait[op.other] = sources_wait[op.other] || !op.done;
    } else if (op.kind != kSend && !op.read && !collectives_wait) {
      if (const std::vector<Posted*> calls = Meet(comm, op.number); !calls.empty()) {
        Take(comm, calls, op);
        op.read = true;
        for (Posted* call : calls) {
          if (call != &mine.op[i]) --call->readers;
        }
      }
      collectives_wait = !op.read;
    }
    op.done = op.done || ((op.read || op.kind == kSend) && mine.op[i].readers == 0);
    all = all && op.done;
  }
  if (!all) return;
  mine.ops = 0;
  comm->batch = nullptr;
}

bool InProgress(ncclComm* comm) {
  Progress(comm);
  return comm->error == ncclSuccess && (!comm->complete() || comm->batch != nullptr);
}

ncclResult_t Failed(ncclComm* comm, ncclResult_t error, std::string text) {
  comm->last_error = std::move(text);
  return error;
}

// Gives the calls of one group to the others.
ncclResult_t Post(ncclComm* comm, const std::shared_ptr<Batch>& batch) {
  if (comm->error != ncclSuccess) return comm->error;
  if (InProgress(comm)) {
    return Failed(comm, ncclInvalidArgument, "the communicator's last call is still in progress");
  }
  {
    Failures& failures = TheFailures();
    const std::lock_guard<std::mutex> lock(failures.mutex);
    if (const auto it = failures.by_rank.find(comm->rank); it != failures.by_rank.end()) {
      comm->error = it->second;
      comm->last_error = "a failure that a test asked for";
      failures.by_rank.erase(it);
      return ncclInProgress;
    }
  }
  Member& mine = comm->table->member[comm->rank];
  if (batch->size() > kMaxOps) return Failed(comm, ncclInternalError, "too many calls in a group");
  size_t used = 0;
  for (size_t i = 0; i < batch->size(); ++i) {
    Op& op = (*batch)[i];
    const int readers = op.kind == kSend ? 1 : op.kind == kReceive ? 0 : comm->size() - 1;
    mine.op[i] = {op.kind, op.type, op.reduction, op.other, op.count, 0, used, readers};
    if (!IsMessage(op.kind)) mine.op[i].number = op.number = comm->collectives++;
    const bool gives = op.kind != kReceive && (op.kind != kBroadcast || op.other == comm->rank);
    const size_t bytes = gives ? mine.op[i].bytes() * (op.kind == kReduceScatter ? comm->size() : 1) : 0;
    if (used + bytes > kRoom) return Failed(comm, ncclInternalError, "too many bytes in a group");
    if (used + bytes > comm->reserved) {
      const off_t at = comm->room(comm->rank) - reinterpret_cast<char*>(comm->table);
      if (posix_fallocate(comm->file, at, static_cast<off_t>(used + bytes)) != 0) {
        return Failed(comm, ncclSystemError, "no shared memory is left");
      }
      comm->reserved = used + bytes;
    }
    Move(comm->room(comm->rank) + used, op.in, bytes);
    used += (bytes + 63) / 64 * 64;
  }
  mine.ops = static_cast<int>(batch->size());
  comm->batch = batch;
  Progress(comm);
  return ncclSuccess;
}

ncclResult_t StateOf(ncclComm* comm) {
  const Lock lock(comm);
  const bool waits = InProgress(comm);
  return comm->error != ncclSuccess ? comm->error : waits ? ncclInProgress : ncclSuccess;
}

ncclResult_t Await(ncclComm* comm) {
  for (;;) {
    const ncclResult_t state = StateOf(comm);
    if (state != ncclInProgress) return state;
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

// What a call of a communicator answers, unless it was refused.
ncclResult_t Answer(ncclComm* comm) {
  if (comm->blocking) return Await(comm);
  return StateOf(comm) == ncclSuccess ? ncclSuccess : ncclInProgress;
}

bool Refused(ncclResult_t posted) { return posted != ncclSuccess && posted != ncclInProgress; }

// EMULATED_NCCL_FAULT, where a communicator is joined or the next group of calls given.
void MeetFault(bool joins) {
  static const std::string& fault = *new std::string([] {
    const char* const said = std::getenv("EMULATED_NCCL_FAULT");
    return said == nullptr ? "" : said;
  }());
  static std::atomic<int> groups = 0;
  const size_t colon = fault.find(':');
  if (colon == std::string::npos) return;
  if ((joins ? 0 : ++groups) != std::atoi(fault.c_str() + colon + 1)) return;
  if (fault.substr(0, colon) == "kill") raise(SIGKILL);
  for (;;) pause();
}

ncclResult_t Give(ncclComm* comm, const std::shared_ptr<Batch>& batch) {
  MeetFault(/*joins=*/false);
  const Lock lock(comm);
  return Post(comm, batch);
}

// Without waiting, whatever the communicator does otherwise.
ncclResult_t Begin(const Pending& p) {
  ncclComm* const comm = p.comm;
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(p.stream, &capturing);
  if (capturing != cudaStreamCaptureStatusActive) return Give(comm, p.batch);
  const cudaError_t e = emulated::Enqueue(p.stream, [comm, ops = *p.batch] {
    if (Refused(Give(comm, std::make_shared<Batch>(ops)))) return cudaErrorLaunchFailure;
    return Await(comm) == ncclSuccess ? cudaSuccess : cudaErrorLaunchFailure;
  });
  return e == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t Enqueue(ncclComm* comm, cudaStream_t stream, const Op& op) {
  if (comm == nullptr) return ncclInvalidArgument;
  if ((IsMessage(op.kind) || op.kind == kBroadcast) && (op.other < 0 || op.other >= comm->size())) {
    const Lock lock(comm);
    return Failed(comm, ncclInvalidArgument, "there is no rank " + std::to_string(op.other));
  }
  if (depth == 0) {
    const ncclResult_t begun = Begin({comm, stream, std::make_shared<Batch>(1, op)});
    return Refused(begun) ? begun : Answer(comm);
  }
  for (Pending& p : pending) {
    if (p.comm == comm && p.stream == stream) {
      p.batch->push_back(op);
      return ncclSuccess;
    }
  }
  pending.push_back({comm, stream, std::make_shared<Batch>(1, op)});
  return ncclSuccess;
}

// Which GPU this is to NCCL: two ranks with the same text are refused.
std::string GpuName(int device) {
  const char* const host = std::getenv("NCCL_HOSTID");
  return std::string(host == nullptr ? "" : host).substr(0, 64) + "/" +
         std::to_string(emulated::PhysicalDevice(device));
}

// Opens the shared memory of an id, which the first to come makes. Null if that fails.
bool OpenTable(ncclComm* comm, int ranks) {
  comm->file = shm_open(comm->name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (comm->file < 0) return false;
  comm->mapped = kTableRoom + ranks * kRoom;
  flock(comm->file, LOCK_EX);
  bool ok = posix_fallocate(comm->file, 0, kTableRoom) == 0 &&
            ftruncate(comm->file, static_cast<off_t>(comm->mapped)) == 0;
  void* const at =
      ok ? mmap(nullptr, comm->mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, comm->file, 0)
         : MAP_FAILED;
  ok = at != MAP_FAILED;
  if (ok) {
    comm->table = static_cast<Table*>(at);
    if (!comm->table->ready) {
      pthread_mutexattr_t shared;
      pthread_mutexattr_init(&shared);
      pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
      pthread_mutexattr_setrobust(&shared, PTHREAD_MUTEX_ROBUST);
      pthread_mutex_init(&comm->table->mutex, &shared);
      pthread_mutexattr_destroy(&shared);
      comm->table->size = ranks;
      comm->table->ready = true;
    }
  }
  flock(comm->file, LOCK_UN);
  return ok;
}

void Close(ncclComm* comm) {
  if (comm->table != nullptr) munmap(comm->table, comm->mapped);
  if (comm->file >= 0) close(comm->file);
  delete comm;
}

// False if the place is taken or the others are of another number.
bool TakePlace(ncclComm* comm, int ranks) {
  const Lock lock(comm);
  Table& table = *comm->table;
  Member& mine = table.member[comm->rank];
  if (table.size != ranks || mine.taken) return false;
  mine.taken = true;
  std::snprintf(mine.gpu, sizeof(mine.gpu), "%s", GpuName(comm->device).c_str());
  if (++table.joined < ranks) return true;
  shm_unlink(comm->name.c_str());
  for (int a = 0; a < ranks; ++a) {
    for (int b = a + 1; b < ranks; ++b) {
      if (std::strcmp(table.member[a].gpu, table.member[b].gpu) == 0)
        table.duplicate[0] = a, table.duplicate[1] = b;
    }
  }
  return true;
}

}  // namespace

namespace emulated {

void SetNcclVersion(int version) { fake_version = version; }
void FailNccl(int rank, ncclResult_t error) {
  Failures& failures = TheFailures();
  const std::lock_guard<std::mutex> lock(failures.mutex);
  failures.by_rank[rank] = error;
}

}  // namespace emulated

ncclResult_t ncclGetVersion(int* version) {
  static const char* const said = std::getenv("EMULATED_NCCL_VERSION");
  *version = fake_version != 0 ? fake_version.load() : said != nullptr ? std::atoi(said) : NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::random_device random;  // a process of the same number may have died
  std::memset(id, 0, sizeof(*id));
  std::snprintf(id->internal, sizeof(id->internal), "/switchyard-nccl-%d-%08x%08x", getpid(), random(),
                random());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  *comm = nullptr;
  if (ranks < 1 || ranks > kMaxRanks || rank < 0 || rank >= ranks) return ncclInvalidArgument;
  if (config != nullptr && (config->magic != 0xcafebeef || config->size == 0)) return ncclInvalidArgument;
  id.internal[sizeof(id.internal) - 1] = 0;
  MeetFault(/*joins=*/true);
  auto* c = new ncclComm;
  c->name = id.internal;
  c->rank = rank;
  c->blocking = config == nullptr || config->blocking != 0;
  cudaGetDevice(&c->device);
  if (!OpenTable(c, ranks)) {
    Close(c);
    return ncclSystemError;
  }
  if (!TakePlace(c, ranks)) {
    Close(c);
    return ncclInvalidUsage;
  }
  *comm = c;
  if (depth > 0) {
    pending_inits.push_back(c);
    return ncclSuccess;
  }
  return Answer(c);
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (comm == nullptr) return ncclSuccess;
  {
    const Lock lock(comm);
    comm->table->member[comm->rank].ops = 0;
    if (!comm->complete()) shm_unlink(comm->name.c_str());  // it never will be
  }
  Close(comm);
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
  *error = StateOf(comm);
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
  std::vector<ncclComm*> begun = inits;
  for (const Pending& p : all) {
    const ncclResult_t posted = Begin(p);
    if (Refused(posted)) {
      merge(posted);
    } else {
      begun.push_back(p.comm);
    }
  }
  // Of one thread with several ranks each goes on only when it is asked: all, until none waits.
  for (bool waits = true; waits;) {
    waits = false;
    for (ncclComm* comm : begun) waits |= comm->blocking && StateOf(comm) == ncclInProgress;
    if (waits) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  for (ncclComm* comm : begun) merge(Answer(comm));
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
