// What the kernels of Backend::kCuda share on the host: the stream of a context, launch shapes as dim3, parts
// of the workspace.
//
//   Workspace w(c);
//   int64_t* starts = w.Take<int64_t>(cells);
//   RETURN_IF_ERROR(MOE_LAUNCH(kernel, GridOf(s), BlockOf(s), 0, CudaStreamOf(c), starts, ...));
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "moe/base/status.h"
#include "moe/device/cuda/cuda.h"
#include "moe/device/device.h"
#include "moe/kernels/cuda/launch.h"
#include "moe/kernels/kernel.h"

namespace moe::kernels {

inline cudaStream_t CudaStreamOf(const KernelContext& c) {
  return static_cast<cudaStream_t>(c.stream->native());
}

inline dim3 GridOf(const LaunchShape& s) { return dim3(static_cast<unsigned>(s.blocks)); }
inline dim3 BlockOf(const LaunchShape& s) { return dim3(s.threads_x, s.threads_y); }

// Parts of a workspace, each aligned to 64 bytes. A kernel's WorkspaceFn adds up WorkspacePart of the same.
class Workspace {
 public:
  explicit Workspace(const KernelContext& c) : next_(static_cast<char*>(c.workspace)) {}
  template <typename T>
  T* Take(int64_t count) {
    T* p = reinterpret_cast<T*>(next_);
    next_ += WorkspacePart(count * static_cast<int64_t>(sizeof(T)));
    return p;
  }

 private:
  char* next_;
};

// Registers a kernel for every float that CUDA offers: it looks at the dtypes of its operands by itself.
inline void AddForFloats(KernelRegistry& r, const char* op, KernelFn fn, WorkspaceFn workspace = nullptr,
                         KernelFn prepare = nullptr) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16})
    r.Add({op, Backend::kCuda, dtype, fn, workspace, /*wide=*/nullptr, prepare});
}

}  // namespace moe::kernels
