// The device of kind kHost: ordinary memory, and work that is done when the call returns.
#pragma once

#include <memory>

#include "moe/device/device.h"

namespace moe {

std::unique_ptr<Device> NewHostDevice();

}  // namespace moe
