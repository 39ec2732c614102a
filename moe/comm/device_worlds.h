// DeviceWorlds: how the ranks of this process reach the others when their values lie on devices: which device
// each rank has, and the world between them.
//
//   DeviceWorldsOptions options;
//   options.kind = device::DeviceKind::kCuda;
//   options.num_ranks = 8;
//   ASSIGN_OR_RETURN(auto worlds, DeviceWorlds::Open(options));
//   LOG(INFO) << worlds->Describe();                 // "8 ranks, a GPU each, by NCCL 2.28.9"
//   World* first = worlds->world(0);                 // of the first rank here, on worlds->device(0)
//
// A rank with a GPU to itself goes by NCCL. More ranks than GPUs are possible in one process alone: they
// share them, and go by the in-process world, as they do on the host. So do ranks with a GPU each in one
// process where NCCL is missing, which Describe then says.
//
// Owns the worlds and devices; they outlive the streams and memory of those who use them. Store and host
// worlds outlive it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "moe/comm/in_process/in_process.h"
#include "moe/comm/store/pulse.h"
#include "moe/comm/store/store.h"
#include "moe/comm/world.h"
#include "moe/device/device.h"

namespace moe::comm {

struct DeviceWorldsOptions {
  device::DeviceKind kind = device::DeviceKind::kHost;
  int64_t num_ranks = 1;  // of the run; dealt to the processes in order, the same number to each
  // Of a run of several processes: how many, which this is, and the same among those of this machine.
  int64_t processes = 1, process = 0, local_processes = 1, local_process = 0;
  Store* store = nullptr;    // of the job; needed with several processes
  Pulse* pulse = nullptr;    // of the job, where pauses of others are looked for
  std::vector<World*> host;  // of the local ranks, for the host's memory; needed with several processes
  absl::Duration timeout = absl::Seconds(60);          // of a call
  absl::Duration connect_timeout = absl::Seconds(60);  // for the members of a group to come
  bool canonical_order = false;                        // see nccl_world.h
  // Tests: as many devices as there are to be, and what opens them. 0, null: all of the kind, by OpenDevice.
  int devices = 0;
  std::function<absl::StatusOr<std::unique_ptr<device::Device>>(device::DeviceKind, int ordinal)> open;
};

// Which device each rank of this process has, and how they meet. A function of numbers alone.
struct DevicePlacement {
  std::vector<int> ordinals;
  bool nccl = false;  // else all in this process
};
// Errors: Unavailable without devices; InvalidArgument where ranks of several processes would have to share a
// device, or cannot be dealt evenly, saying which numbers would do.
absl::StatusOr<DevicePlacement> PlaceRanks(const DeviceWorldsOptions& options, int devices);

class DeviceWorlds {
 public:
  // Errors: those of OpenDevice, PlaceRanks and NCCL.
  static absl::StatusOr<std::unique_ptr<DeviceWorlds>> Open(const DeviceWorldsOptions& options);

  int64_t size() const { return static_cast<int64_t>(worlds_.size()); }
  World* world(int64_t i) const { return worlds_[i]; }  // of the i-th rank of this process
  device::Device* device(int64_t i) const { return rank_devices_[i]; }
  bool uses_nccl() const { return uses_nccl_; }  // else the ranks are all in this process
  std::string Describe() const { return description_; }

 private:
  DeviceWorlds() = default;

  std::vector<std::unique_ptr<device::Device>> devices_;  // each once
  std::vector<device::Device*> rank_devices_;
  std::unique_ptr<MemoryStore> store_;
  std::unique_ptr<InProcessWorld> in_process_;
  std::vector<std::unique_ptr<World>> owned_;
  std::vector<World*> worlds_;
  bool uses_nccl_ = false;
  std::string description_;
};

// How NCCL makes itself known, where it is linked in (alwayslink): one object at namespace scope.
struct NcclBackend {
  absl::StatusOr<std::string> (*version)();  // "2.28.9", or why there is none
  absl::StatusOr<std::unique_ptr<World>> (*connect)(int64_t rank, int64_t num_ranks, Store* store,
                                                    World* host, const DeviceWorldsOptions& options);
};
struct NcclBackendRegistration {
  explicit NcclBackendRegistration(NcclBackend backend);
};

}  // namespace moe::comm
