// The word `checkpoint=` of a strategy: what the backward computes again instead of keeping it.
//
//   none, selective, full, auto     a policy (moe/passes/checkpoint.h says what each does)
//   nn.rms_norm+nn.swiglu           these ops, and nothing else
//   selective+nn.attention          a policy, and these ops besides
//
//   ASSIGN_OR_RETURN(CheckpointPolicy p, ParseCheckpointPolicy("selective+nn.attention"));
//
// Plain data; pure functions.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/strategy/choices.h"

namespace moe {
struct OpDef;
}

namespace moe::strategy {

struct CheckpointPolicy {
  CheckpointMode mode = CheckpointMode::kNone;
  std::vector<std::string> ops;  // computed again besides

  bool Is(CheckpointMode m) const { return mode == m && ops.empty(); }  // and nothing else
  std::string ToString() const;
};

// Errors (InvalidArgument): a word that is neither a policy nor an op, with the nearest op; two policies; an
// op that is never computed twice, with the reason.
absl::StatusOr<CheckpointPolicy> ParseCheckpointPolicy(absl::string_view text);

// Why a node of this op may not be computed twice; empty if it may.
std::string WhyNeverRecomputed(const OpDef& op);

}  // namespace moe::strategy
