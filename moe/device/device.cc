#include "moe/device/device.h"

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "moe/base/dynamic_library.h"
#include "moe/device/host_device.h"

namespace moe::device {
namespace {

std::vector<DeviceBackend>& Backends() {
  static auto& backends = *new std::vector<DeviceBackend>{
      {DeviceKind::kHost, [] { return 1; },
       [](int) -> absl::StatusOr<std::unique_ptr<Device>> { return NewHostDevice(); }}};
  return backends;
}

const DeviceBackend* Find(DeviceKind kind) {
  for (const DeviceBackend& b : Backends()) {
    if (b.kind == kind) return &b;
  }
  return nullptr;
}

constexpr char kCudaLibrary[] = "libswitchyard_cuda.so";

absl::Status NotBuilt() {
  return absl::UnavailableError(
      "the CUDA back end is not built; legal: bazel run --config=cuda //tools:compile_and_train, where there is a "
      "CUDA toolkit, or --device=cpu");
}

}  // namespace

absl::string_view DeviceKindName(DeviceKind kind) { return kind == DeviceKind::kHost ? "cpu" : "cuda"; }

absl::StatusOr<DeviceKind> ParseDeviceKind(absl::string_view word) {
  for (const DeviceKind kind : {DeviceKind::kHost, DeviceKind::kCuda}) {
    if (word == DeviceKindName(kind)) return kind;
  }
  return absl::InvalidArgumentError(absl::StrCat("no device is called '", word, "'; legal are cpu and cuda"));
}

absl::Status LoadBackend(DeviceKind kind) {
  if (Find(kind) != nullptr) return absl::OkStatus();
  const absl::Status loaded = DynamicLibrary::Open({kCudaLibrary}).status();
  // Another error is of something that the library needs, which the linker names.
  if (absl::StartsWith(loaded.message(), absl::StrCat(kCudaLibrary, ": cannot open"))) return NotBuilt();
  if (loaded.ok()) CHECK(Find(kind) != nullptr) << kCudaLibrary << " has no devices";
  return loaded;
}

int CountDevices(DeviceKind kind) {
  const DeviceBackend* backend = Find(kind);
  return backend == nullptr ? 0 : backend->count();
}

absl::Status CheckDevices(DeviceKind kind) {
  return CountDevices(kind) > 0 ? absl::OkStatus() : OpenDevice(kind, 0).status();
}

absl::StatusOr<std::unique_ptr<Device>> OpenDevice(DeviceKind kind, int ordinal) {
  const DeviceBackend* backend = Find(kind);
  if (backend == nullptr) return NotBuilt();
  const int count = backend->count();
  if (count > 0 && (ordinal < 0 || ordinal >= count)) {
    return absl::InvalidArgumentError(absl::StrCat("no ", DeviceKindName(kind), " device ", ordinal,
                                                   "; there are ", count, ", counted from 0"));
  }
  return backend->open(ordinal);
}

DeviceBackendRegistration::DeviceBackendRegistration(DeviceBackend backend) { Backends().push_back(backend); }

}  // namespace moe::device
