#include "moe/device/device.h"

#include <vector>

#include "absl/strings/str_cat.h"
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

}  // namespace

absl::string_view DeviceKindName(DeviceKind kind) { return kind == DeviceKind::kHost ? "cpu" : "cuda"; }

absl::StatusOr<DeviceKind> ParseDeviceKind(absl::string_view word) {
  for (const DeviceKind kind : {DeviceKind::kHost, DeviceKind::kCuda}) {
    if (word == DeviceKindName(kind)) return kind;
  }
  return absl::InvalidArgumentError(absl::StrCat("no device is called '", word, "'; there are cpu and cuda"));
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
  if (backend == nullptr) {
    return absl::UnavailableError(absl::StrCat("this binary was built without ", DeviceKindName(kind),
                                               ": no toolkit was found when it was built"));
  }
  const int count = backend->count();
  if (count > 0 && (ordinal < 0 || ordinal >= count)) {
    return absl::InvalidArgumentError(absl::StrCat("no ", DeviceKindName(kind), " device ", ordinal,
                                                   "; there are ", count, ", counted from 0"));
  }
  return backend->open(ordinal);
}

DeviceBackendRegistration::DeviceBackendRegistration(DeviceBackend backend) { Backends().push_back(backend); }

}  // namespace moe::device
