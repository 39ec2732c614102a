#include "moe/kernels/cuda/nvrtc.h"

#include <cstdlib>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace moe::kernels {

bool Nvrtc::Load(DynamicLibrary library) {
  library.Find("nvrtcVersion", &version_);
  library.Find("nvrtcCreateProgram", &create_);
  library.Find("nvrtcDestroyProgram", &destroy_);
  library.Find("nvrtcCompileProgram", &compile_);
  library.Find("nvrtcGetProgramLogSize", &log_size_);
  library.Find("nvrtcGetProgramLog", &log_);
  library.Find("nvrtcGetCUBINSize", &cubin_size_);
  library.Find("nvrtcGetCUBIN", &cubin_);
  library.Find("nvrtcGetErrorString", &error_);
  return library.Complete().ok() && version_(&major_, &minor_) == 0;
}

absl::StatusOr<const Nvrtc*> Nvrtc::Find() {
  static const absl::StatusOr<const Nvrtc*>& found = *new absl::StatusOr<const Nvrtc*>([]() {
    std::vector<std::string> names;
    for (const char* name : {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"}) names.push_back(name);
    const char* home = std::getenv("CUDA_HOME");
    for (const std::string& folder :
         {std::string(home != nullptr ? home : ""), std::string("/usr/local/cuda")}) {
      if (!folder.empty()) names.push_back(absl::StrCat(folder, "/lib64/libnvrtc.so"));
    }
    auto* nvrtc = new Nvrtc;
    for (const std::string& name : names) {
      const absl::StatusOr<DynamicLibrary> library = DynamicLibrary::Open({name.c_str()});
      if (library.ok() && nvrtc->Load(*library)) return absl::StatusOr<const Nvrtc*>(nvrtc);
    }
    delete nvrtc;
    return absl::StatusOr<const Nvrtc*>(
        absl::UnavailableError(absl::StrCat("no NVRTC; tried ", absl::StrJoin(names, ", "))));
  }());
  return found;
}

absl::StatusOr<std::string> Nvrtc::Compile(const std::string& source, const std::string& architecture) const {
  Program program = nullptr;
  const int created = create_(&program, source.c_str(), "fused.cu", 0, nullptr, nullptr);
  if (created != 0) return absl::InternalError(absl::StrCat("NVRTC: ", error_(created)));
  const std::string option = absl::StrCat("--gpu-architecture=", architecture);
  const char* const options[] = {option.c_str(), "--std=c++17"};
  const int compiled = compile_(program, 2, options);
  std::string out;
  size_t size = 0;
  absl::Status status;
  if (compiled != 0) {
    if (log_size_(program, &size) == 0) {
      out.resize(size);
      log_(program, out.data());
    }
    status = absl::InvalidArgumentError(absl::StrCat("NVRTC: ", error_(compiled), "\n", out));
  } else if (cubin_size_(program, &size) == 0 && size > 0) {
    out.resize(size);
    if (cubin_(program, out.data()) != 0) status = absl::InternalError("NVRTC: no machine code");
  } else {
    status = absl::InternalError("NVRTC: no machine code");
  }
  destroy_(&program);
  if (!status.ok()) return status;
  return out;
}

}  // namespace moe::kernels
