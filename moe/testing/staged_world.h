// Worlds over a device for callers whose buffers are the host's: each call copies its buffers to the device,
// runs there, and copies the results back. For tests, so that one suite serves hosts and devices.
//
//   std::unique_ptr<WorldSet> set = StageOnDevices(std::move(worlds), devices);   // rank r on devices[r]
//
// Bytes around a buffer on the device are poisoned, and a call that touches them fails with Internal. The set
// owns the worlds; the devices are shared by those who use them.
#pragma once

#include <memory>
#include <vector>

#include "moe/device/device.h"
#include "moe/testing/conformance.h"

namespace moe::testing {

std::unique_ptr<WorldSet> StageOnDevices(std::unique_ptr<WorldSet> worlds,
                                         std::vector<std::shared_ptr<device::Device>> devices);

}  // namespace moe::testing
