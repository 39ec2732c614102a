// DynamicLibrary: a library that is looked for when the program first needs it, so that a binary starts
// without it.
//
//   ASSIGN_OR_RETURN(DynamicLibrary nccl, DynamicLibrary::Open({"libnccl.so.2", "libnccl.so"}));
//   nccl.Find("ncclGetVersion", &api.GetVersion);  // null where it has none
//   RETURN_IF_ERROR(nccl.Complete());              // "libnccl.so.2 lacks ncclGetVersion"
//
// Looked for as the dynamic linker does it (LD_LIBRARY_PATH, the rpath, the system's folders), or by path. It
// is never unloaded: what was found stays. Not thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace moe {

class DynamicLibrary {
 public:
  // The first of these that loads. Error: Unavailable, with what the linker says of each.
  static absl::StatusOr<DynamicLibrary> Open(absl::Span<const char* const> names);

  const std::string& name() const { return name_; }  // as it was asked for
  // Sets a pointer to a function, to null where the library has no such symbol.
  template <typename Function>
  void Find(const char* symbol, Function** function) {
    *function = reinterpret_cast<Function*>(Symbol(symbol));
  }
  // FailedPrecondition with the symbols that were looked for and are not there.
  absl::Status Complete() const;

 private:
  void* Symbol(const char* symbol);

  std::string name_, missing_;
  void* handle_ = nullptr;
};

}  // namespace moe
