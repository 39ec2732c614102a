// A device of the host whose streams really are late, for tests of what events must order.
//
//   std::unique_ptr<device::Device> delayed = NewDelayedDevice(/*ordinal=*/0, seed);
//   ... hand its streams to what claims to work on any device; a missing Wait gives wrong results ...
//
// Its kind is kCuda, its memory the host's, so nothing but Stream's own work can be run on it (native() is
// null). Each stream has a thread that does the work in order, and pauses at random between two pieces.
// Thread-safe as Device says.
#pragma once

#include <cstdint>
#include <memory>

#include "moe/device/device.h"

namespace moe::testing {

std::unique_ptr<device::Device> NewDelayedDevice(int ordinal, uint64_t seed);

}  // namespace moe::testing
