// The device of kind kHost: ordinary memory, and work that is done when the call returns.
#pragma once

#include <memory>

#include "moe/device/device.h"

namespace moe::device {

std::unique_ptr<Device> NewHostDevice();

// A stream of a device that is always there: for whoever is given none. Its calls keep no state, so any
// number of threads may use it.
Stream* HostStream();

}  // namespace moe::device
