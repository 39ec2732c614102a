#include "block_runner.h"

#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include <boost/context/detail/fcontext.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

constinit thread_local uint3 threadIdx = {0, 0, 0};
constinit thread_local uint3 blockIdx = {0, 0, 0};
constinit thread_local dim3 blockDim;
constinit thread_local dim3 gridDim;

namespace emulated {
namespace {

using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

// Tops of stacks lie at different offsets of a page, so that they do not share lines of the cache.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStack = 512 << 10;  // its frames are larger
#else
constexpr size_t kStack = 128 << 10;
#endif
constexpr size_t kStride = kStack + 832;
constexpr int kMaxThreads = 1024, kWarp = 32;
constexpr size_t kMaxShared = 227 << 10;
constexpr uint64_t kCanary = 0x5afe57ac5afe57ac;

struct Fiber {
  char* stack = nullptr;  // lowest address
  fcontext_t context = nullptr;
};

struct ThreadState {
  Fiber* fiber = nullptr;
  uint3 index = {0, 0, 0};
  WarpRequest* request = nullptr;
  bool at_barrier = false, done = false;
};

class BlockRunner {
 public:
  ~BlockRunner() {
    if (stacks_ != nullptr) munmap(stacks_, kMaxThreads * kStride);
  }

  std::string Run(const Grid& grid);

  void* shared() { return shared_.data() + offset_; }

  int Sync(bool predicate, std::source_location where) {
    if (arrived_ == 0) {
      barrier_ = where;
    } else if (!SamePlace(barrier_, where)) {
      Fail("threads of a block wait at " + Place(barrier_) + " and at " + Place(where));
    }
    predicates_ += predicate;
    if (++arrived_ == count_) {
      released_predicates_ = predicates_;
      predicates_ = arrived_ = 0;
      for (int t = 0; t < count_; ++t) {
        if (t != current_) ready_.push_back(t);
        threads_[t].at_barrier = false;
      }
    } else {
      threads_[current_].at_barrier = true;
      Suspend();
    }
    return released_predicates_;
  }

  void Exchange(WarpRequest& request) {
    const int warp = current_ / kWarp;
    if ((request.mask >> (current_ % kWarp) & 1) == 0) {
      Fail("a thread calls " + Place(request.where) + " with a mask that does not have its lane");
    }
    threads_[current_].request = &request;
    if (!Complete(warp, request, current_)) Suspend();
  }

  uint32_t live() const { return live_[current_ / kWarp]; }
  int current() const { return current_; }

  [[noreturn]] void Fail(std::string what) {
    if (fault_.empty()) fault_ = std::move(what);
    Fiber* const self = running_;
    Leave(nullptr, self);
    jump_fcontext(main_, &self->context);
    std::abort();  // abandoned fibers are not resumed
  }

 private:
  static bool SamePlace(const std::source_location& a, const std::source_location& b) {
    return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
  }
  static std::string Place(const std::source_location& l) {
    return std::string(l.file_name()) + ":" + std::to_string(l.line());
  }

  // Whether all live lanes of the request's mask have come to the same place; then they are released, `self`
  // without being resumed (-1: all are).
  bool Complete(int warp, const WarpRequest& request, int self) {
    const uint32_t needed = request.mask & live_[warp];
    WarpRequest* lanes[kWarp] = {};
    for (uint32_t rest = needed; rest != 0; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      WarpRequest* const r = threads_[warp * kWarp + lane].request;
      if (r == nullptr || r->mask != request.mask || !SamePlace(r->where, request.where)) return false;
      lanes[lane] = r;
    }
    request.complete(lanes, needed);
    for (uint32_t rest = needed; rest != 0; rest &= rest - 1) {
      const int t = warp * kWarp + __builtin_ctz(rest);
      threads_[t].request = nullptr;
      if (t != self) ready_.push_back(t);
    }
    return true;
  }

  void Exit() {
    ThreadState& thread = threads_[current_];
    thread.done = true;
    thread.fiber = nullptr;
    ++done_;
    const int warp = current_ / kWarp;
    live_[warp] &= ~(1u << (current_ % kWarp));
    for (uint32_t rest = live_[warp]; rest != 0; rest &= rest - 1) {
      const WarpRequest* const r = threads_[warp * kWarp + __builtin_ctz(rest)].request;
      if (r != nullptr) Complete(warp, *r, -1);
    }
  }

  static void FiberMain(transfer_t t) {
    *static_cast<fcontext_t*>(t.data) = t.fctx;
    Self().Arrive();
    Self().Loop();
  }

  static BlockRunner& Self() {
    static thread_local const auto runner = std::make_unique<BlockRunner>();
    return *runner;
  }
  friend BlockRunner& Runner();

  void Loop() {
    Fiber* const self = running_;
    for (;;) {
      while (next_ < count_) {
        current_ = next_++;
        threads_[current_].fiber = self;
        threadIdx = threads_[current_].index;
        grid_->thread(grid_->arguments);
        if (*reinterpret_cast<uint64_t*>(self->stack) != kCanary) {
          Fail("a thread needs more than " + std::to_string(kStack) + " bytes of stack");
        }
        Exit();
      }
      free_.push_back(self);
      SwitchTo(NextFiber(), self);
      // Taken from the free list again, for threads that have not started.
    }
  }

  // The fiber that goes on: of a thread that may, else one for those that have not started, else null: main.
  Fiber* NextFiber() {
    if (ready_at_ < ready_.size()) {
      Fiber* const fiber = threads_[ready_[ready_at_++]].fiber;
      if (ready_at_ == ready_.size()) {
        ready_.clear();
        ready_at_ = 0;
      }
      return fiber;
    }
    return next_ < count_ ? TakeFree() : nullptr;
  }

  void Suspend() {
    Fiber* const self = running_;
    const int t = current_;
    SwitchTo(NextFiber(), self);
    current_ = t;
    threadIdx = threads_[t].index;
  }

  void SwitchTo(Fiber* next, Fiber* self) {
    if (next == self) return;
    const fcontext_t to = next == nullptr ? main_ : next->context;
    running_ = next;
    Leave(next, self);
    const transfer_t t = jump_fcontext(to, self == nullptr ? &main_ : &self->context);
    *static_cast<fcontext_t*>(t.data) = t.fctx;
    Arrive();
    running_ = self;
  }

  // Around every jump: AddressSanitizer wants to know on which stack the thread goes on. Null is main's.
#ifdef __SANITIZE_ADDRESS__
  void Leave(Fiber* next, Fiber* self) {
    from_main_ = self == nullptr;
    __sanitizer_start_switch_fiber(nullptr, next == nullptr ? main_stack_ : next->stack,
                                   next == nullptr ? main_bytes_ : kStack);
  }
  void Arrive() {
    const void* stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
    if (from_main_) main_stack_ = stack, main_bytes_ = bytes;
  }
  bool from_main_ = false;
  const void* main_stack_ = nullptr;
  size_t main_bytes_ = 0;
#else
  void Leave(Fiber*, Fiber*) {}
  void Arrive() {}
#endif

  Fiber* TakeFree() {
    if (!free_.empty()) {
      Fiber* const fiber = free_.back();
      free_.pop_back();
      return fiber;
    }
    if (stacks_ == nullptr) {
      stacks_ = static_cast<char*>(mmap(nullptr, kMaxThreads * kStride, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      if (stacks_ == MAP_FAILED) std::abort();
    }
    Fiber& fiber = fibers_.emplace_back();
    fiber.stack = stacks_ + (fibers_.size() - 1) * kStride;
    Reset(fiber);
    return &fiber;
  }

  static void Reset(Fiber& fiber) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(fiber.stack, kStack);  // of frames that were abandoned
#endif
    *reinterpret_cast<uint64_t*>(fiber.stack) = kCanary;
    fiber.context = make_fcontext(fiber.stack + kStack, kStack, &FiberMain);
  }

  std::string Stuck() const;

  const Grid* grid_ = nullptr;
  int count_ = 0, next_ = 0, done_ = 0, current_ = 0;
  ThreadState threads_[kMaxThreads];
  uint32_t live_[kMaxThreads / kWarp] = {};
  int arrived_ = 0, predicates_ = 0, released_predicates_ = 0;
  std::source_location barrier_;
  std::vector<int> ready_;
  size_t ready_at_ = 0;
  std::deque<Fiber> fibers_;
  std::vector<Fiber*> free_;
  char* stacks_ = nullptr;
  fcontext_t main_ = nullptr;
  Fiber* running_ = nullptr;  // null: main
  std::string fault_;
  std::vector<char> shared_;
  size_t offset_ = 0;
};

BlockRunner& Runner() { return BlockRunner::Self(); }

std::string BlockRunner::Stuck() const {
  int waiting = 0;
  for (int t = 0; t < count_; ++t) {
    if (const WarpRequest* r = threads_[t].request) {
      return "thread " + std::to_string(t) + " waits at " + Place(r->where) +
             " for lanes of its mask that do not come";
    }
    waiting += threads_[t].at_barrier;
  }
  return std::to_string(waiting) + " of " + std::to_string(count_) + " threads wait at " + Place(barrier_) +
         ", " + std::to_string(done_) + " have ended";
}

std::string BlockRunner::Run(const Grid& grid) {
  const dim3 threads = grid.threads, blocks = grid.blocks;
  const uint64_t count = uint64_t{threads.x} * threads.y * threads.z;
  if (grid_ != nullptr) return std::string(grid.kernel) + ": launched from within a kernel";
  if (count == 0 || count > kMaxThreads || threads.z > 64 || uint64_t{blocks.x} * blocks.y * blocks.z == 0 ||
      blocks.x > 0x7fffffffu || blocks.y > 65535 || blocks.z > 65535 || grid.shared_bytes > kMaxShared) {
    return std::string(grid.kernel) + ": no such configuration: " + std::to_string(blocks.x) + " x " +
           std::to_string(blocks.y) + " x " + std::to_string(blocks.z) + " blocks of " +
           std::to_string(threads.x) + " x " + std::to_string(threads.y) + " x " + std::to_string(threads.z) +
           " threads with " + std::to_string(grid.shared_bytes) + " bytes of shared memory";
  }
  grid_ = &grid;
  count_ = static_cast<int>(count);
  gridDim = blocks;
  blockDim = threads;
  if (shared_.size() < grid.shared_bytes + 128) shared_.resize(grid.shared_bytes + 128);
  offset_ = -reinterpret_cast<uintptr_t>(shared_.data()) & 127;
  int t = 0;
  for (unsigned z = 0; z < threads.z; ++z) {
    for (unsigned y = 0; y < threads.y; ++y) {
      for (unsigned x = 0; x < threads.x; ++x) threads_[t++].index = {x, y, z};
    }
  }
  std::string fault;
  for (blockIdx.z = 0; blockIdx.z < blocks.z && fault.empty(); ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < blocks.y && fault.empty(); ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < blocks.x && fault.empty(); ++blockIdx.x) {
        std::memset(shared(), 0xff, grid.shared_bytes);
        next_ = done_ = arrived_ = predicates_ = 0;
        for (int i = 0; i < count_; ++i) {
          threads_[i].fiber = nullptr;
          threads_[i].request = nullptr;
          threads_[i].at_barrier = threads_[i].done = false;
        }
        for (int w = 0; w * kWarp < count_; ++w) {
          const int lanes = count_ - w * kWarp;
          live_[w] = lanes >= kWarp ? ~0u : (1u << lanes) - 1;
        }
        SwitchTo(TakeFree(), nullptr);
        if (done_ == count_ && fault_.empty()) continue;
        fault = std::string(grid.kernel) + ", block (" + std::to_string(blockIdx.x) + ", " +
                std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) +
                "): " + (fault_.empty() ? Stuck() : fault_);
      }
    }
  }
  if (!fault.empty()) {  // Fibers of threads that did not end are started anew.
    fault_.clear();
    ready_.clear();
    ready_at_ = 0;
    free_.clear();
    for (Fiber& fiber : fibers_) {
      Reset(fiber);
      free_.push_back(&fiber);
    }
  }
  grid_ = nullptr;
  return fault;
}

}  // namespace

std::string RunGrid(const Grid& grid) { return Runner().Run(grid); }
void* DynamicShared() { return Runner().shared(); }
void SyncThreads(std::source_location where) { Runner().Sync(false, where); }
int SyncThreadsCount(bool predicate, std::source_location where) { return Runner().Sync(predicate, where); }
void WarpExchange(WarpRequest& request) { Runner().Exchange(request); }
uint32_t LiveLanes() { return Runner().live(); }
int Lane() { return Runner().current() % kWarp; }
void Trap(std::source_location where) {
  Runner().Fail(std::string("trap at ") + where.file_name() + ":" + std::to_string(where.line()));
}

}  // namespace emulated
