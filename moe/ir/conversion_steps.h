// Steps of a conversion between two placements: what insert-collectives plans and what the runtime executes.
//
// A conversion takes a value from one placement to another through phases; a phase is (source placement,
// destination placement, steps), and corresponds to one comm.* node. Steps act on the refined view: each dim
// whose axes change is seen as one sub-dim per axis that leaves it or comes to it, so that several axes can
// move at once although no placement describes the value in between. A step with several moves is one
// collective over the product of their axes, members ordered by their index over those axes in move order,
// the first axis being the major one.
//
//   steps = "reduce_scatter tp:sum>1; all_gather dp:0>-"
//
// Roles are those of Placement::Role: a dim, "-" (replicated), "sum" or "max". Plain data; no threads, no
// ownership.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/ir/types.h"

namespace moe {

enum class StepKind : uint8_t {
  kZero,
  kSlice,
  kReduceScatter,
  kAllReduce,
  kAllToAll,
  kAllGather,
  kPermute,
  kRotate,  // a step alone, between equal placements: blocks go to the next rank
};

absl::string_view StepKindName(StepKind kind);  // "reduce_scatter"; the op is "comm." + the name
bool IsLocal(StepKind kind);                    // zero and slice talk to nobody

struct Move {
  AxisId axis = 0;
  int from = Placement::kNone, to = Placement::kNone;  // as Placement::Role
  friend bool operator==(const Move&, const Move&) = default;
};

struct ConversionStep {
  StepKind kind = StepKind::kZero;
  std::vector<Move> moves;  // major first
  AxisList axes() const;    // of the moves, in their order
  friend bool operator==(const ConversionStep&, const ConversionStep&) = default;
};

// The value of the attribute `steps`, axes by name.
std::string PrintSteps(const std::vector<ConversionStep>& steps, const Mesh& mesh);
// Inverse of PrintSteps. Errors (InvalidArgument): unknown kinds, axes or roles, an axis twice in a step, an
// empty step. Whether the steps lead from one placement to another is checked where they meet a type
// (Exchange::Create).
absl::StatusOr<std::vector<ConversionStep>> ParseSteps(absl::string_view text, const Mesh& mesh);

}  // namespace moe
