// Devices that plans are made for, by name: --target=h100.
//
//   ASSIGN_OR_RETURN(Target target, NamedTarget("h100"));
//
// Rates are the makers' for one device, dense and without sparsity, each way where a link has two; what a
// program reaches of them is for it to measure. Constant data.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/cost/target.h"

namespace moe::cost {

// "cpu" is Target() itself. Error: InvalidArgument, with the names there are.
absl::StatusOr<Target> NamedTarget(absl::string_view name);
std::vector<std::string> TargetNames();

// The target that a GPU is by the name that it gives itself, "NVIDIA H200". Only the variants whose data
// sheets the targets' rates are from count: an H100 PCIe or NVL is slower. Error: NotFound.
absl::StatusOr<Target> TargetOfDevice(absl::string_view device);

}  // namespace moe::cost
