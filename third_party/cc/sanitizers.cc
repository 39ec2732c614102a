// What every program of --config=asan and --config=tsan carries: the sanitizers' options, what they are not to report and
// why, and what ThreadSanitizer cannot see by itself. Nothing without a sanitizer.
//
// The libraries of the system are not instrumented. What they do with memory is checked only where a function of libc
// does it, and how their threads meet is not seen at all.

#if defined(__SANITIZE_ADDRESS__)

extern "C" const char* __asan_default_options() {
  // Arenas reserve address space that they may never use; a user's limit of it is a Status, not an abort.
  return "allocator_may_return_null=1:detect_stack_use_after_return=0:strict_init_order=1";
}

extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1:halt_on_error=1"; }

extern "C" const char* __lsan_default_suppressions() {
  return
      // Its threads and their buffers live as long as the process.
      "leak:libopenblas\n"
      // Primitives that its cache holds at the end.
      "leak:libdnnl\n"
      // The fonts and plug-ins of Graphviz, which has no call that frees them all.
      "leak:libgvc\n"
      "leak:libcgraph\n"
      "leak:libpango\n"
      "leak:libfontconfig\n";
}

#elif defined(__SANITIZE_THREAD__)

#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

extern "C" const char* __tsan_default_options() { return "second_deadlock_stack=1:halt_on_error=0"; }

extern "C" const char* __tsan_default_suppressions() {
  return
      // Not instrumented: how its worker threads hand over memory is not seen.
      "called_from_lib:libopenblas.so\n"
      "called_from_lib:libdnnl.so\n"
      // Gloo waits for its epoll thread on a condition variable of its own, inside the library.
      "race:gloo::transport\n"
      "called_from_lib:libgloo.so\n"
      // Logs from any thread; its flags are plain integers that are set once, at the start.
      "called_from_lib:libglog.so\n";
}

// Mutexes of Abseil order what their users do, but the library is not instrumented: each call goes to it from here, and
// ThreadSanitizer is told what the call orders. Within a call conditions are read, under the mutex, by whichever thread
// has it, so reads are not looked at until it returns.
extern "C" void AnnotateIgnoreReadsBegin(const char* file, int line);
extern "C" void AnnotateIgnoreReadsEnd(const char* file, int line);

namespace {

template <typename F>
F* Real(const char* symbol) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, symbol));
}

using absl::Condition;
using absl::Duration;
using absl::Time;

}  // namespace

#define ABSL_SYMBOL(name) "_ZN4absl7debian3" name

// Name, symbol, whether it gives up the mutex before and has it after, result, parameters beside the mutex, arguments.
#define MOE_ORDER(Name, symbol, releases, acquires, Result, parameters, ...) \
  extern "C" Result Name parameters __asm__(ABSL_SYMBOL(symbol));            \
  extern "C" __attribute__((visibility("default"))) Result Name parameters { \
    static auto* const real = Real<Result parameters>(ABSL_SYMBOL(symbol));  \
    if (releases) __tsan_release(mutex);                                     \
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);                            \
    struct After {                                                           \
      void* mutex;                                                           \
      ~After() {                                                             \
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);                          \
        if (acquires) __tsan_acquire(mutex);                                 \
      }                                                                      \
    } after{mutex};                                                          \
    return real(__VA_ARGS__);                                                \
  }

MOE_ORDER(MutexLock, "5Mutex4LockEv", false, true, void, (void* mutex), mutex)
MOE_ORDER(MutexTryLock, "5Mutex7TryLockEv", false, true, bool, (void* mutex), mutex)
MOE_ORDER(MutexUnlock, "5Mutex6UnlockEv", true, false, void, (void* mutex), mutex)
MOE_ORDER(MutexReaderLock, "5Mutex10ReaderLockEv", false, true, void, (void* mutex), mutex)
MOE_ORDER(MutexReaderUnlock, "5Mutex12ReaderUnlockEv", true, false, void, (void* mutex), mutex)
MOE_ORDER(MutexAwait, "5Mutex5AwaitERKNS0_9ConditionE", true, true, void, (void* mutex, const Condition& c),
          mutex, c)
MOE_ORDER(MutexAwaitTimeout, "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE", true, true, bool,
          (void* mutex, const Condition& c, Duration d), mutex, c, d)
MOE_ORDER(MutexAwaitDeadline, "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE", true, true, bool,
          (void* mutex, const Condition& c, Time t), mutex, c, t)
MOE_ORDER(MutexLockWhen, "5Mutex8LockWhenERKNS0_9ConditionE", false, true, void,
          (void* mutex, const Condition& c), mutex, c)
MOE_ORDER(MutexLockWhenTimeout, "5Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE", false, true,
          bool, (void* mutex, const Condition& c, Duration d), mutex, c, d)
MOE_ORDER(MutexLockWhenDeadline, "5Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE", false, true,
          bool, (void* mutex, const Condition& c, Time t), mutex, c, t)
MOE_ORDER(CondVarWait, "7CondVar4WaitEPNS0_5MutexE", true, true, void, (void* self, void* mutex), self, mutex)
MOE_ORDER(CondVarWaitTimeout, "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE", true, true, bool,
          (void* self, void* mutex, Duration d), self, mutex, d)
MOE_ORDER(CondVarWaitDeadline, "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE", true, true, bool,
          (void* self, void* mutex, Time t), self, mutex, t)

#undef MOE_ORDER
#undef ABSL_SYMBOL

#endif
