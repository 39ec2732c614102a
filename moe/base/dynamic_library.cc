#include "moe/base/dynamic_library.h"

#include <dlfcn.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace moe {

absl::StatusOr<DynamicLibrary> DynamicLibrary::Open(absl::Span<const char* const> names) {
  std::vector<std::string> failures;
  for (const char* name : names) {
    DynamicLibrary library;
    library.name_ = name;
    library.handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library.handle_ != nullptr) return library;
    failures.push_back(dlerror());
  }
  return absl::UnavailableError(absl::StrJoin(failures, "; "));
}

void* DynamicLibrary::Symbol(const char* symbol) {
  void* const found = dlsym(handle_, symbol);
  if (found == nullptr) absl::StrAppend(&missing_, missing_.empty() ? "" : ", ", symbol);
  return found;
}

absl::Status DynamicLibrary::Complete() const {
  if (missing_.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(name_, " lacks ", missing_));
}

}  // namespace moe
