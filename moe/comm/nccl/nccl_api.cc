#include "moe/comm/nccl/nccl_api.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/dynamic_library.h"
#include "moe/base/status.h"

namespace moe::comm {
namespace {

absl::StatusOr<NcclApi> LoadDefault() {
#ifdef MOE_EMULATED
  NcclApi api;
#define MOE_NCCL_SET(name) api.name = &::nccl##name;
  MOE_NCCL_FUNCTIONS(MOE_NCCL_SET)
#undef MOE_NCCL_SET
  api.library = "the emulated NCCL";
  api.GetVersion(&api.version);
  if (api.version == 0) {
    static constexpr const char* kNone[] = {"libnccl-of-nobody.so.2"};
    return LoadNcclFrom(kNone);
  }
  RETURN_IF_ERROR(CheckNcclVersion(api.version, api.library));
  return api;
#else
  static constexpr const char* kNames[] = {"libnccl.so.2", "libnccl.so"};
  return LoadNcclFrom(kNames);
#endif
}

}  // namespace

std::string NcclVersionName(int version) {
  // 2.8 and before counted in thousands.
  if (version < 10000) return absl::StrCat(version / 1000, ".", version / 100 % 10, ".", version % 100);
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

absl::Status CheckNcclVersion(int version, const std::string& library) {
  if (version >= kOldestNccl) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      library, " is NCCL ", NcclVersionName(version), "; ", NcclVersionName(kOldestNccl),
      " or newer is needed (this binary was built with ", NcclVersionName(NCCL_VERSION_CODE), ")"));
}

absl::StatusOr<NcclApi> LoadNcclFrom(absl::Span<const char* const> libraries) {
  absl::StatusOr<DynamicLibrary> library = DynamicLibrary::Open(libraries);
  if (!library.ok()) {
    return absl::UnavailableError(
        absl::StrCat("NCCL, by which GPUs exchange data, was not found (", library.status().message(),
                     "); install it, or add the folder of libnccl.so.2 to LD_LIBRARY_PATH"));
  }
  NcclApi api;
  api.library = library->name();
#define MOE_NCCL_FIND(name) library->Find("nccl" #name, &api.name);
  MOE_NCCL_FUNCTIONS(MOE_NCCL_FIND)
#undef MOE_NCCL_FIND
  // An old one is called old rather than incomplete.
  if (api.GetVersion != nullptr && api.GetVersion(&api.version) == ncclSuccess) {
    RETURN_IF_ERROR(CheckNcclVersion(api.version, api.library));
  }
  RETURN_IF_ERROR(library->Complete());
  return api;
}

absl::StatusOr<const NcclApi*> LoadNccl() {
  static const auto& loaded = *new absl::StatusOr<NcclApi>(LoadDefault());
  RETURN_IF_ERROR(loaded.status());
  return &*loaded;
}

}  // namespace moe::comm
