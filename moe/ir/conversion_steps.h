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
// Roles are those of Placement::Role: a dim, "-" (replicated), "sum" or "max". Most conversions are one step
// that their types tell (StepBetween), and the other way round a step tells the type after it (TypeAfter).
// Plain data; no threads, no ownership.
#pragma once

#include <optional>
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
// Of "comm.reduce_scatter"; none for ops that are not named after a step.
std::optional<StepKind> StepKindOfOp(absl::string_view op);
bool IsLocal(StepKind kind);  // zero and slice talk to nobody
// Does a step of this kind take an axis from one role to another? False for kPermute and kRotate, which keep
// the roles.
bool Performs(StepKind kind, int from, int to);

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
// The one step that leads from one placement to another by moving `axes`, the first of them the major one.
// Error (InvalidArgument): an axis does not move, or the moves are not all of one kind, so that the
// placements do not tell how they follow each other.
absl::StatusOr<ConversionStep> StepBetween(const Placement& from, const Placement& to, const AxisList& axes,
                                           const Mesh& mesh);
// The type of a value after a step that moves `axes`; those of a slice, a reduce_scatter and an all_to_all go
// to `dim`, behind the axes that it has. Errors (InvalidArgument): an axis is not where such a step finds it
// (only the last axes of a dim can leave it), `dim` is missing, ragged or not divisible, or the kind is
// kPermute, where the type after it says what happens.
absl::StatusOr<Type> TypeAfter(StepKind kind, const Type& type, const AxisList& axes, std::optional<int> dim,
                               const Mesh& mesh);

// Inverse of PrintSteps. Errors (InvalidArgument): unknown kinds, axes or roles, an axis twice in a step, an
// empty step. Whether the steps lead from one placement to another is checked where they meet a type
// (Exchange::Create).
absl::StatusOr<std::vector<ConversionStep>> ParseSteps(absl::string_view text, const Mesh& mesh);

}  // namespace moe
