// Runs single nodes on host values: whole, or the part of one rank of a mesh; and cuts and compares values by
// placement.
//
//   ASSERT_OK_AND_ASSIGN(auto y, RunNode(*c.node, *kernel, c.operands));
//   ASSERT_OK_AND_ASSIGN(auto mine, RunNodeOnRank(*c.node, *kernel, assignment, mesh, rank, local_operands));
//
// Results and workspace arrive poisoned (NaN bits) and are followed by guard bytes; a kernel that writes
// beyond its buffers fails the run. Pure functions.
#pragma once

#include <map>
#include <random>
#include <vector>

#include "absl/status/statusor.h"
#include "moe/device/device.h"
#include "moe/ir/registry.h"
#include "moe/kernels/kernel.h"
#include "moe/testing/op_cases.h"

namespace moe::testing {

struct RunNodeOptions {
  bool in_place = false;  // results take over operands' storage where the op says so
  // Ragged values have room for so many rows in the arena, or else lie in the spill; -1: for all.
  int64_t spill_from_row = -1;
  // Where everything lies, and what the kernel works on, if not on the host: for kernels of Backend::kCuda.
  // `data` of ragged tensors is not set then.
  device::Device* device = nullptr;
  device::Stream* stream = nullptr;
  bool tf32 = false;      // as KernelContext has it
  bool as_graph = false;  // the kernel's work is recorded, and done by a launch of the recording
};
absl::StatusOr<std::vector<HostValue>> RunNode(const Node& n, const kernels::Kernel& kernel,
                                               const std::vector<HostValue>& operands,
                                               const RunNodeOptions& options = {});

// `operands` are local to `rank`. Factors are cut as the assignment says.
absl::StatusOr<std::vector<HostValue>> RunNodeOnRank(const Node& n, const kernels::Kernel& kernel,
                                                     const FactorAssignment& assignment, const Mesh& mesh,
                                                     int64_t rank, const std::vector<HostValue>& operands,
                                                     const RunNodeOptions& options = {});

// The part of a global value that `rank` has under a placement, partials aside.
HostValue ShardOf(const HostValue& global, const Placement& placement, const Mesh& mesh, int64_t rank);

// Per rank: a part whose sums over the partial axes of the placement give the value. Summands are random;
// those of integers are integers.
std::vector<HostValue> SplitByPlacement(const HostValue& global, const Placement& placement, const Mesh& mesh,
                                        std::mt19937_64& rng);

// Reduces the locals of all ranks over the partial axes and compares each with its part of `want`: the
// largest error, relative by norm. NaN counts as infinite, and so do ragged sizes that differ.
double AssembledError(const std::vector<HostValue>& locals, const Placement& placement, const HostValue& want,
                      const Mesh& mesh);

// ||got - want|| / max(||want||, 1); infinite for NaN and for different shapes or sizes. Operands are of
// order 1, so a result below 1 is one of cancellation, as a dot product or a gradient at hidden = 1 can be.
double RelativeError(const HostValue& got, const HostValue& want);

// Runs all nodes of a function, in order, by the kernels of a back end. `values` holds its arguments and
// receives everything else.
absl::Status RunFunction(const Function& f, const kernels::KernelRegistry& kernels, kernels::Backend backend,
                         std::map<Value, HostValue>* values);

}  // namespace moe::testing
