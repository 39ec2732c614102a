// Whether a kernel passes over NaN: a result that depends on an operand must be NaN where the operand is.
//
//   for (const OpCase& c : MakeOpCases(Ops(), options)) {
//     ExpectNaNIsKept(c, reference, seed, [&](const auto& operands) { return RunNode(*c.node, kernel, operands); });
//   }
//
// What depends on what is found with the reference kernel, by other values. Ops that answer for NaN with a
// number (optim.clip, and updates by their finite operand) are left out.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "moe/kernels/kernel.h"
#include "moe/testing/op_cases.h"

namespace moe::testing {

using RunOperands =
    std::function<absl::StatusOr<std::vector<HostValue>>(const std::vector<HostValue>& operands)>;

// The number of elements that were looked at. Failures are those of the test that calls this.
int64_t ExpectNaNIsKept(const OpCase& c, const kernels::Kernel& reference, uint64_t seed,
                        const RunOperands& run);

}  // namespace moe::testing
