#include "moe/device/cuda/cuda.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace moe::cuda {

absl::Status StatusOf(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  std::string message = absl::StrCat("CUDA: ", what, ": ", cudaGetErrorString(error));
  cudaGetLastError();  // so that a launch that follows is not blamed for it
#ifdef MOE_EMULATED
  if (error == cudaErrorLaunchFailure) absl::StrAppend(&message, ": ", emulated::LastFault());
#endif
  switch (error) {
    case cudaErrorMemoryAllocation:
      return absl::ResourceExhaustedError(message);
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
      return absl::UnavailableError(message);
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureUnmatched:
    case cudaErrorStreamCaptureUnjoined:
      return absl::FailedPreconditionError(message);
    default:
      return absl::InternalError(message);
  }
}

}  // namespace moe::cuda
