// The CUDA runtime and what the project's own sources write instead of its syntax, so that they compile
// twice: against the toolkit, and against moe/testing/emulated, where MOE_EMULATED is defined.
//
//   template <typename T>
//   __global__ void Scale(T* x, int64_t n, float by) { ... MOE_DYNAMIC_SHARED(float, sums); ... }
//
//   RETURN_IF_ERROR(MOE_LAUNCH((Scale<__nv_bfloat16>), dim3(blocks), dim3(256), 256 * sizeof(float), stream,
//                              x, n, 2.0f));
//   RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
//
// MOE_LAUNCH works in .cc files, too. Arguments are converted to the types of the kernel's parameters. A grid
// without blocks does nothing. MOE_LAUNCH itself asks for dynamic shared memory beyond 48 KiB.
// Stateless; errors that an earlier asynchronous call left come out of a later one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "moe/base/status.h"

namespace moe::cuda {

// ResourceExhausted for memory, Unavailable for missing devices and old drivers, FailedPrecondition for what
// graphs cannot record, Internal otherwise; `what` is put before the runtime's own words.
absl::Status StatusOf(cudaError_t error, absl::string_view what);

// dim3(blocks) with as many blocks of `threads` as `n` elements need, at most `most`: for loops with a stride
// of the whole grid. 0 for no elements.
inline dim3 BlocksFor(int64_t n, int threads, int64_t most = 1 << 16) {
  const int64_t blocks = (n + threads - 1) / threads;
  return dim3(static_cast<unsigned>(blocks < most ? blocks : most));
}

template <typename... P, typename... A>
absl::Status Launch(const char* name, void (*kernel)(P...), dim3 blocks, dim3 threads, size_t shared_bytes,
                    cudaStream_t stream, A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "as many arguments as the kernel has parameters");
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) return absl::OkStatus();
  std::tuple<std::remove_cv_t<P>...> values{static_cast<P>(arguments)...};
#ifdef MOE_EMULATED
  const auto run = [=] {
    struct Call {
      void (*kernel)(P...);
      std::tuple<std::remove_cv_t<P>...> values;
    };
    const Call call{kernel, values};
    emulated::Grid grid;
    grid.kernel = name;
    grid.blocks = blocks;
    grid.threads = threads;
    grid.shared_bytes = shared_bytes;
    grid.thread = [](const void* at) {
      const Call& c = *static_cast<const Call*>(at);
      std::apply(c.kernel, c.values);
    };
    grid.arguments = &call;
    return emulated::RunKernel(grid);
  };
  return StatusOf(emulated::Enqueue(stream, run), name);
#else
  const void* const function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > (48 << 10)) {
    const cudaError_t set = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 static_cast<int>(shared_bytes));
    if (set != cudaSuccess) return StatusOf(set, name);
  }
  return std::apply(
      [&](auto&... value) {
        void* pointers[sizeof...(P) + 1] = {const_cast<void*>(static_cast<const void*>(&value))...};
        return StatusOf(cudaLaunchKernel(function, blocks, threads, pointers, shared_bytes, stream), name);
      },
      values);
#endif
}

}  // namespace moe::cuda

#define MOE_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...) \
  ::moe::cuda::Launch(#kernel, kernel, blocks, threads, shared_bytes, stream __VA_OPT__(, ) __VA_ARGS__)

// Declares T* name, the block's dynamic shared memory, aligned to 128.
#ifdef MOE_EMULATED
#define MOE_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::emulated::DynamicShared())
#else
#define MOE_DYNAMIC_SHARED(T, name)                                    \
  extern __shared__ __align__(128) unsigned char moe_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(moe_dynamic_shared)
#endif

#define RETURN_IF_CUDA_ERROR(expr)                                                            \
  do {                                                                                        \
    const cudaError_t moe_cuda_error_ = (expr);                                               \
    if (moe_cuda_error_ != cudaSuccess) return ::moe::cuda::StatusOf(moe_cuda_error_, #expr); \
  } while (false)
