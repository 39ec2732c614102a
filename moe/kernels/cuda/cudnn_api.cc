#include "moe/kernels/cuda/cudnn_api.h"

#include "absl/strings/str_cat.h"
#include "moe/base/dynamic_library.h"
#include "moe/base/status.h"
#include "moe/device/cuda/cuda.h"  // MOE_EMULATED

namespace moe::kernels {
namespace {

absl::StatusOr<CudnnApi> LoadDefault() {
#ifdef MOE_EMULATED
  CudnnApi api;
#define MOE_CUDNN_SET(name) api.name = &::cudnn##name;
  MOE_CUDNN_FUNCTIONS(MOE_CUDNN_SET)
#undef MOE_CUDNN_SET
  api.library = "the emulated cuDNN";
  api.version = static_cast<int64_t>(api.GetVersion());
  RETURN_IF_ERROR(CheckCudnnVersion(api.version, api.library));
  return api;
#else
  static constexpr const char* kNames[] = {"libcudnn.so.9"};
  return LoadCudnnFrom(kNames);
#endif
}

}  // namespace

absl::Status CudnnApi::StatusOf(cudnnStatus_t status, absl::string_view call) const {
  if (status == CUDNN_STATUS_SUCCESS) return absl::OkStatus();
  char said[1024] = {};
  GetLastErrorString(said, sizeof(said));
  const std::string text = absl::StrCat("cuDNN ", CudnnVersionName(version), ": ", call, ": ",
                                        GetErrorString(status), said[0] == 0 ? "" : ": ", said);
  return status >= CUDNN_STATUS_NOT_SUPPORTED && status < CUDNN_STATUS_NOT_SUPPORTED + 1000
             ? absl::UnimplementedError(text)
             : absl::InternalError(text);
}

std::string CudnnVersionName(int64_t version) {
  // 8 and before counted in thousands.
  if (version < 90000) return absl::StrCat(version / 1000, ".", version / 100 % 10, ".", version % 100);
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

absl::Status CheckCudnnVersion(int64_t version, const std::string& library) {
  if (version >= kOldestCudnn) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(library, " is cuDNN ", CudnnVersionName(version), "; ",
                                                    CudnnVersionName(kOldestCudnn), " or newer is needed"));
}

absl::StatusOr<CudnnApi> LoadCudnnFrom(absl::Span<const char* const> libraries) {
  absl::StatusOr<DynamicLibrary> library = DynamicLibrary::Open(libraries);
  if (!library.ok()) {
    return absl::UnavailableError(
        absl::StrCat("cuDNN, which --cudnn_attention asks for, was not found (", library.status().message(),
                     "); install it, or add the folder of libcudnn.so.9 to LD_LIBRARY_PATH"));
  }
  CudnnApi api;
  api.library = library->name();
#define MOE_CUDNN_FIND(name) library->Find("cudnn" #name, &api.name);
  MOE_CUDNN_FUNCTIONS(MOE_CUDNN_FIND)
#undef MOE_CUDNN_FIND
  // An old one is called old rather than incomplete.
  if (api.GetVersion != nullptr) {
    api.version = static_cast<int64_t>(api.GetVersion());
    RETURN_IF_ERROR(CheckCudnnVersion(api.version, api.library));
  }
  RETURN_IF_ERROR(library->Complete());
  return api;
}

absl::StatusOr<const CudnnApi*> LoadCudnn() {
  static const auto& loaded = *new absl::StatusOr<CudnnApi>(LoadDefault());
  RETURN_IF_ERROR(loaded.status());
  return &*loaded;
}

}  // namespace moe::kernels
