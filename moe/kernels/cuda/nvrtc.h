// CUDA C++ to machine code while the program runs, by NVRTC: found when it is asked for, since a machine may
// have a driver and no toolkit.
//
//   ASSIGN_OR_RETURN(const Nvrtc* nvrtc, Nvrtc::Find());
//   ASSIGN_OR_RETURN(std::string cubin, nvrtc->Compile(source, "sm_90"));
//
// Looks for libnvrtc where the loader looks, then in $CUDA_HOME/lib64 and /usr/local/cuda/lib64. Needs no
// device. Thread-safe.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "moe/base/dynamic_library.h"

namespace moe::kernels {

class Nvrtc {
 public:
  // Error: Unavailable, with the names that were tried.
  static absl::StatusOr<const Nvrtc*> Find();

  int major() const { return major_; }
  int minor() const { return minor_; }
  // A cubin for "sm_<version>". Error: InvalidArgument with the compiler's log.
  absl::StatusOr<std::string> Compile(const std::string& source, const std::string& architecture) const;

 private:
  Nvrtc() = default;
  bool Load(DynamicLibrary library);

  using Program = struct OpaqueProgram*;
  int (*version_)(int*, int*) = nullptr;
  int (*create_)(Program*, const char*, const char*, int, const char* const*, const char* const*) = nullptr;
  int (*destroy_)(Program*) = nullptr;
  int (*compile_)(Program, int, const char* const*) = nullptr;
  int (*log_size_)(Program, size_t*) = nullptr;
  int (*log_)(Program, char*) = nullptr;
  int (*cubin_size_)(Program, size_t*) = nullptr;
  int (*cubin_)(Program, char*) = nullptr;
  const char* (*error_)(int) = nullptr;
  int major_ = 0, minor_ = 0;
};

}  // namespace moe::kernels
