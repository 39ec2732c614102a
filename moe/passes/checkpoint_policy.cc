#include "moe/passes/checkpoint_policy.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace moe::passes {

std::string WhyNeverRecomputed(const OpDef& op) {
  if (op.Has(kDecision))
    return "it decides routes, and deciding twice may decide differently: its results are saved";
  if (op.Has(kStateful)) return "it updates state, which would happen twice";
  if (op.Has(kRandom)) return "it draws random numbers without a key of its own";
  return "";
}

absl::StatusOr<CheckpointPolicy> ParseCheckpointPolicy(absl::string_view text) {
  CheckpointPolicy policy;
  bool named = false;
  for (absl::string_view word : absl::StrSplit(text, '+')) {
    const auto bad = [&, w = word](auto... parts) {
      return absl::InvalidArgumentError(absl::StrCat("checkpoint '", text, "': ", parts...));
    };
    const std::pair<absl::string_view, CheckpointPolicy::Base> bases[] = {
        {"none", CheckpointPolicy::kNone},
        {"selective", CheckpointPolicy::kSelective},
        {"full", CheckpointPolicy::kFull},
        {"auto", CheckpointPolicy::kAuto}};
    bool base = false;
    for (const auto& [name, value] : bases) {
      if (word != name) continue;
      if (named) return bad("two policies; legal is one of none, selective, full, auto");
      policy.base = value;
      base = named = true;
    }
    if (base) continue;
    const OpDef* op = Ops().Find(word);
    if (op == nullptr) {
      return bad("'", word,
                 "' is neither a policy (none, selective, full, auto) nor an op; the nearest op is ",
                 Ops().Nearest(word));
    }
    if (const std::string why = WhyNeverRecomputed(*op); !why.empty())
      return bad(word, " is never recomputed: ", why);
    policy.ops.push_back(std::string(word));
  }
  if (policy.base == CheckpointPolicy::kAuto && !policy.ops.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("checkpoint '", text,
                     "': auto chooses the nodes itself; legal is auto alone, or another policy with ops"));
  }
  return policy;
}

}  // namespace moe::passes
