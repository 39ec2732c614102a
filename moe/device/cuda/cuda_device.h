// The devices of kind kCuda: memory, streams, events and graphs of one GPU by the CUDA runtime.
//
// A binary that links this (alwayslink) has OpenDevice(DeviceKind::kCuda, ordinal). Streams are made by name:
// "comm" has the highest priority, so that an exchange does not wait behind kernels, then "copy", then all
// others. Work on two of a device's streams overlaps unless events order it. Graphs are captured from the
// stream in which the calling thread works; other threads may go on meanwhile.
//
// In emulation it is the same code on the emulated runtime, and its description says so.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "moe/device/device.h"

namespace moe::device {

// Errors: as OpenDevice.
absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(int ordinal);
int CountCudaDevices();

}  // namespace moe::device
