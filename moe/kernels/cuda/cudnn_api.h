// CudnnApi: the functions of cuDNN that the project uses, found when the program runs. A binary starts
// without libcudnn.so.9, and says what is missing when it first needs the library.
//
//   ASSIGN_OR_RETURN(const CudnnApi* cudnn, LoadCudnn());
//   cudnn->BackendCreateDescriptor(CUDNN_BACKEND_TENSOR_DESCRIPTOR, &tensor);
//
// The library is looked for as the dynamic linker does it (LD_LIBRARY_PATH, the rpath, the system's folders),
// is loaded once and never unloaded. Thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "moe/device/cuda/cudnn_backend.h"

namespace moe::kernels {

#define MOE_CUDNN_FUNCTIONS(X) \
  X(GetVersion)                \
  X(GetErrorString)            \
  X(GetLastErrorString)        \
  X(Create)                    \
  X(SetStream)                 \
  X(BackendCreateDescriptor)   \
  X(BackendDestroyDescriptor)  \
  X(BackendFinalize)           \
  X(BackendSetAttribute)       \
  X(BackendGetAttribute)       \
  X(BackendExecute)

struct CudnnApi {
#define MOE_CUDNN_MEMBER(name) decltype(&::cudnn##name) name = nullptr;
  MOE_CUDNN_FUNCTIONS(MOE_CUDNN_MEMBER)
#undef MOE_CUDNN_MEMBER
  int64_t version = 0;  // 91900 is 9.19.0
  std::string library;  // what was loaded

  // Ok, or Internal with what the library says: the call, the status and its last message. NOT_SUPPORTED is
  // Unimplemented.
  absl::Status StatusOf(cudnnStatus_t status, absl::string_view call) const;
};

// The oldest on which attention's graphs were finalised.
inline constexpr int64_t kOldestCudnn = 91900;

std::string CudnnVersionName(int64_t version);  // "9.19.0"
// FailedPrecondition if that is too old, saying what is there and what is needed.
absl::Status CheckCudnnVersion(int64_t version, const std::string& library);

// The first of these that loads. Errors: Unavailable, with what the linker says of each; FailedPrecondition
// for one that is too old or lacks a function.
absl::StatusOr<CudnnApi> LoadCudnnFrom(absl::Span<const char* const> libraries);
// Once for the process; the same answer ever after.
absl::StatusOr<const CudnnApi*> LoadCudnn();

}  // namespace moe::kernels
