// RankDevice: the device that a rank works on, and its streams by name. Programs that share a rank's memory
// share these too, so that their work stays in one order and a communicator knows one stream.
//
//   RankDevice device(opened.get());
//   ASSIGN_OR_RETURN(device::Stream* compute, device.StreamOf("compute"));
//
// Used by one thread at a time, the streams as moe/device/device.h says. Outlives the executors on it, and
// the device it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/base/status.h"
#include "moe/device/device.h"

namespace moe::runtime {

class RankDevice {
 public:
  explicit RankDevice(device::Device* device) : device_(device) {}

  device::Device* device() const { return device_; }
  // The stream of the kind "compute", "comm" or "copy"; of several of a kind, `which`.
  absl::StatusOr<device::Stream*> StreamOf(const std::string& kind, const std::string& which = "") {
    std::unique_ptr<device::Stream>& stream = streams_[{kind, which}];
    if (stream == nullptr) {
      ASSIGN_OR_RETURN(stream, device_->NewStream(kind));
    }
    return stream.get();
  }

 private:
  device::Device* const device_;
  std::map<std::pair<std::string, std::string>, std::unique_ptr<device::Stream>> streams_;
};

}  // namespace moe::runtime
