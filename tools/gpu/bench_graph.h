// BenchGraph: a few nodes on a device, with random operands, each timed by the device's own clock.
//
//   BenchGraph g(device, Backend::kCuda);
//   const Value x = g.Arg("x", DType::kBF16, {4096, 4096}), w = g.Arg("w", DType::kBF16, {4096, 4096});
//   ASSIGN_OR_RETURN(Value y, g.Op("math.einsum", {x, w}, {{"eq", std::string("m k, k n -> m n")}}));
//   RETURN_IF_ERROR(g.Prepare());
//   ASSIGN_OR_RETURN(BenchTimes t, g.Time(/*warm_up=*/3, /*repeats=*/20));
//
// The nodes run one after the other on one stream, through the kernel registry, as the executor would run
// them; every value has memory of its own, so nothing is reused between two runs. Owns its module and memory;
// the device outlives it. One thread at a time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/device/device.h"
#include "moe/ir/builder.h"
#include "moe/ir/graph.h"
#include "moe/kernels/kernel.h"

namespace moe::tools {

// kBelow: integers in [0, scale). kSkewed: normal, and 4 times as large in the first quarter of the last dim.
enum class BenchFill : uint8_t { kNormal, kSkewed, kOnes, kIota, kBelow };

struct BenchTimes {
  double seconds = 0;                          // of all nodes together, the median over the runs
  std::map<std::string, double> node_seconds;  // by name hint, of runs in which each node is timed
};

class BenchGraph {
 public:
  BenchGraph(device::Device* device, kernels::Backend backend);

  // scale: standard deviation, or the bound of kBelow. Integers are s32.
  Value Arg(const std::string& name, DType dtype, const std::vector<int64_t>& dims,
            BenchFill fill = BenchFill::kNormal, double scale = 1);
  absl::StatusOr<Value> Op(const std::string& op, std::vector<Value> operands, Attributes attributes = {},
                           const std::string& name = "");
  absl::StatusOr<Node*> Create(const std::string& op, std::vector<Value> operands, Attributes attributes,
                               const std::string& name);

  int64_t bytes() const { return bytes_; }  // after Prepare
  // Errors: NotFound for an op without a kernel; ResourceExhausted, with what the graph needs.
  absl::Status Prepare();
  absl::Status Run();
  absl::StatusOr<BenchTimes> Time(int warm_up, int repeats);
  absl::StatusOr<std::vector<int32_t>> ReadIntegers(Value v);

 private:
  struct Step {
    const Node* node;
    const kernels::Kernel* kernel;
    kernels::KernelContext context;
    std::string name;
  };
  absl::Status Fill(const Value& v, BenchFill fill, double scale);
  absl::Status RunStep(Step& s);

  device::Device* const device_;
  const kernels::Backend backend_;
  std::unique_ptr<Module> module_;
  Function* function_;
  Builder builder_;
  std::vector<std::pair<Value, std::pair<BenchFill, double>>> args_;
  std::vector<std::pair<Node*, std::string>> nodes_;
  std::unique_ptr<device::Stream> stream_;
  std::map<Value, std::unique_ptr<device::DeviceMemory>> memory_;
  std::unique_ptr<device::DeviceMemory> workspace_;
  std::vector<Step> steps_;
  int64_t bytes_ = 0;
};

}  // namespace moe::tools
