// The in-process world over CUDA: ranks that share a GPU, and ranks of two GPUs that read each other's
// memory.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "moe/base/status.h"
#include "moe/comm/in_process/in_process.h"
#include "moe/device/cuda/cuda.h"
#include "moe/device/device.h"
#include "moe/testing/conformance.h"
#include "moe/testing/staged_world.h"

namespace moe::comm {
namespace {

using testing::CommunicatorConformance;

class Worlds : public testing::WorldSet {
 public:
  Worlds(int num_ranks, InProcessOptions options) : world_(num_ranks, options) {}
  World* rank(int rank) override { return world_.rank(rank); }

 private:
  InProcessWorld world_;
};

testing::CommBackend Backend(std::string name, int devices) {
  testing::CommBackend backend;
  backend.name = std::move(name);
  if (device::CountDevices(device::DeviceKind::kCuda) == 0) {
    backend.unavailable = std::string(device::OpenDevice(device::DeviceKind::kCuda, 0).status().message());
  } else if (device::CountDevices(device::DeviceKind::kCuda) < devices) {
    backend.unavailable = "there is only one CUDA device";
  }
  backend.max_ranks = devices == 1 ? 8 : 5;
  backend.make = [devices](int n,
                           absl::Duration timeout) -> absl::StatusOr<std::unique_ptr<testing::WorldSet>> {
    std::vector<std::shared_ptr<device::Device>> all, of_rank;
    for (int d = 0; d < devices; ++d) {
      ASSIGN_OR_RETURN(std::unique_ptr<device::Device> device,
                       device::OpenDevice(device::DeviceKind::kCuda, d));
      all.push_back(std::move(device));
    }
    for (int r = 0; r < n; ++r) of_rank.push_back(all[r % devices]);
    return testing::StageOnDevices(std::make_unique<Worlds>(n, InProcessOptions{.timeout = timeout}),
                                   of_rank);
  };
  return backend;
}

INSTANTIATE_TEST_SUITE_P(OverCuda, CommunicatorConformance,
                         ::testing::Values(Backend("OneGpu", 1), Backend("TwoGpus", 2)),
                         testing::CommBackendName);

}  // namespace
}  // namespace moe::comm
