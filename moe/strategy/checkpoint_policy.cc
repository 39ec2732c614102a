#include "moe/strategy/checkpoint_policy.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "moe/ir/registry.h"

namespace moe::strategy {

std::string WhyNeverRecomputed(const OpDef& op) {
  if (op.Has(kDecision))
    return "it decides routes, and deciding twice may decide differently: its results are saved";
  if (op.Has(kStateful)) return "it updates state, which would happen twice";
  if (op.Has(kRandom)) return "it draws random numbers without a key of its own";
  return "";
}

std::string CheckpointPolicy::ToString() const {
  std::vector<std::string> words = ops;
  if (mode != CheckpointMode::kNone || ops.empty()) words.insert(words.begin(), std::string(Name(mode)));
  return absl::StrJoin(words, "+");
}

absl::StatusOr<CheckpointPolicy> ParseCheckpointPolicy(absl::string_view text) {
  const std::string policies = JoinNames(NamesOf<CheckpointMode>());
  CheckpointPolicy policy;
  bool named = false;
  for (absl::string_view word : absl::StrSplit(text, '+')) {
    const auto bad = [&, w = word](auto... parts) {
      return absl::InvalidArgumentError(absl::StrCat("checkpoint '", text, "': ", parts...));
    };
    CheckpointMode mode;
    if (ParseChoice(word, &mode)) {
      if (named) return bad("two policies; legal is one of ", policies);
      policy.mode = mode;
      named = true;
      continue;
    }
    const OpDef* op = Ops().Find(word);
    if (op == nullptr) {
      return bad("'", word, "' is neither a policy (", policies, ") nor an op; the nearest op is ",
                 Ops().Nearest(word));
    }
    if (const std::string why = WhyNeverRecomputed(*op); !why.empty())
      return bad(word, " is never recomputed: ", why);
    policy.ops.push_back(std::string(word));
  }
  if (policy.mode == CheckpointMode::kAuto && !policy.ops.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("checkpoint '", text,
                     "': auto chooses the nodes itself; legal is auto alone, or another policy with ops"));
  }
  return policy;
}

}  // namespace moe::strategy
