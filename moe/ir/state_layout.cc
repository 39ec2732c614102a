#include "moe/ir/state_layout.h"

#include <cstdint>
#include <variant>

#include "absl/strings/str_cat.h"
#include "moe/ir/state.h"

namespace moe {

bool IsPersistent(const State& state) { return AttrString(state.attributes, "reset") != "step"; }

absl::StatusOr<StateLayout> StateLayoutOf(const Program& program) {
  StateLayout layout;
  const Attributes& attributes = program.module->attributes();
  const auto cuts = attributes.find("layer_cuts");
  if (cuts == attributes.end() || !std::holds_alternative<std::vector<int64_t>>(cuts->second)) {
    return absl::FailedPreconditionError("the program has no stages yet; run partition-stages first");
  }
  for (const int64_t cut : std::get<std::vector<int64_t>>(cuts->second)) {
    layout.layer_cuts.push_back(static_cast<int>(cut));
  }
  for (const auto& s : program.module->states()) {
    if (IsPersistent(*s)) layout.placements[s->name] = s->type.placement;
  }
  return layout;
}

absl::Status CheckSameState(const Program& a, const Program& b) {
  if (a.module->mesh().num_ranks() != b.module->mesh().num_ranks() ||
      a.memory.stages.size() != b.memory.stages.size()) {
    return absl::FailedPreconditionError("plans that share state must have the same ranks and stages");
  }
  for (const auto* pair : {&a, &b}) {
    const Program& one = *pair;
    const Program& other = pair == &a ? b : a;
    for (const auto& s : one.module->states()) {
      if (!IsPersistent(*s)) continue;
      const State* same = other.module->FindState(s->name);
      if (same == nullptr || !(same->type == s->type)) {
        return absl::FailedPreconditionError(absl::StrCat(
            "plans that share state differ in @", s->name, ": ", TypeToString(s->type, one.module->mesh()),
            " and ", same == nullptr ? "none" : TypeToString(same->type, other.module->mesh())));
      }
    }
  }
  for (size_t stage = 0; stage < a.memory.stages.size(); ++stage) {
    for (const auto& [name, ref] : a.memory.stages[stage].states) {
      const State* state = a.module->FindState(name);
      if (state == nullptr || !IsPersistent(*state)) continue;
      const auto it = b.memory.stages[stage].states.find(name);
      if (it == b.memory.stages[stage].states.end() || !(it->second == ref)) {
        return absl::FailedPreconditionError(absl::StrCat("plans that share state store @", name,
                                                          " of stage ", stage, " at different offsets"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace moe
