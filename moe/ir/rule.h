// Sharding rules: einsum-like strings over *factors*.
//
//   "b s (k g) d!, b t! k d!, b t! k d! -> b s (k g) d!"
//
// A dim is one factor or a product (k g), major first; a minor factor may be sharded only when its majors are
// exhausted. `f!` may not be sharded. A factor in operands only leaves a partial in the results when it is
// sharded. A factor in results only may be sharded freely: the kernel is given the offset and the extent of
// every factor.
#pragma once

#include <string>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/ir/types.h"

namespace moe {

using FactorId = int8_t;  // index in ShardingRule::factors
using FactorDim = absl::InlinedVector<FactorId, 2>;
using FactorTerm = absl::InlinedVector<FactorDim, 6>;  // one operand or result

struct ShardingRule {
  std::vector<std::string> factors;
  std::vector<FactorTerm> operands, results;
  std::vector<bool> fixed;  // per factor: marked with '!'

  static absl::StatusOr<ShardingRule> Parse(absl::string_view text);
  int num_factors() const { return static_cast<int>(factors.size()); }
  int Find(absl::string_view factor) const;  // -1 if there is none
  bool InOperands(FactorId f) const;
  bool InResult(int result, FactorId f) const;
  std::string ToString() const;
};

// Parsed rules are interned: the same text always gives the same pointer. Thread-safe. Never freed.
absl::StatusOr<const ShardingRule*> InternRule(absl::string_view text);

// factor -> axes, major first; one entry per factor of the rule. Empty where the graph is not placed yet.
using FactorAssignment = absl::InlinedVector<AxisList, 8>;

}  // namespace moe
