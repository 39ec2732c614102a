#include "moe/passes/facts.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace moe::passes {
namespace {

std::string Missing(const Module& module, FunctionRole role) {
  return module.Find(role) != nullptr ? "" : absl::StrCat("there is no @", role.Name());
}

// One for each chunk; without a schedule there is one chunk at least.
std::string MissingOfChunks(const Program& program, FunctionKind kind) {
  const int chunks = std::max<int>(1, static_cast<int>(program.schedule.chunk_stage.size()));
  for (int c = 0; c < chunks; ++c) {
    if (std::string missing = Missing(*program.module, {kind, c}); !missing.empty()) return missing;
  }
  return "";
}

bool IsSpread(const Node& node) {
  for (int i = 0; i < node.num_results(); ++i) {
    if (!node.type(i).placement.IsReplicated()) return true;
  }
  return std::any_of(node.assignment.begin(), node.assignment.end(),
                     [](const AxisList& axes) { return !axes.empty(); });
}

std::string WhatIsSpread(const Module& module) {
  for (const auto& state : module.states()) {
    if (!state->type.placement.IsReplicated()) return absl::StrCat("the state @", state->name, " is placed");
  }
  for (const auto& f : module.functions()) {
    const auto placed = [&](const Node& n) {
      return absl::StrCat("%", n.result_name(), " of @", f->name(), " is placed");
    };
    for (const Node* a : f->args()) {
      if (IsSpread(*a)) return placed(*a);
    }
    for (const auto& n : f->body()) {
      if (IsSpread(*n)) return placed(*n);
    }
  }
  return "";
}

std::string Unscheduled(const Program& program) {
  if (program.schedule.actions.empty()) return "no stage has actions";
  for (const auto& [name, stages] : program.schedule.actions) {
    for (size_t stage = 0; stage < stages.size(); ++stage) {
      for (const Action& a : stages[stage]) {
        const FunctionRole role = RoleOf(a, static_cast<int>(stage));
        // A stage without parameters or reports has nothing to update or to report.
        if (role.kind == FunctionKind::kUpdate || role.kind == FunctionKind::kReport) continue;
        if (role.kind != FunctionKind::kOther && program.module->Find(role) == nullptr) {
          return absl::StrCat("stage ", stage, " runs @", role.Name(), " in ", name, ", which is gone");
        }
      }
    }
  }
  return "";
}

}  // namespace

absl::string_view DescribeFact(Fact fact) {
  switch (fact) {
    case Fact::kStep:
      return "a function @step";
    case Fact::kForward:
      return "the forward alone";
    case Fact::kUpdate:
      return "a function @update";
    case Fact::kUnplaced:
      return "a program that is not placed yet";
    case Fact::kLowered:
      return "conversions that are lowered to collectives";
    case Fact::kChunks:
      return "the functions @chunk0, ...";
    case Fact::kPhases:
      return "the functions @forward0, ...";
    case Fact::kScheduled:
      return "the actions of every stage";
  }
  return "";
}

std::string WhyNot(Fact fact, const Program& program) {
  const Module& module = *program.module;
  switch (fact) {
    case Fact::kStep:
      return Missing(module, FunctionKind::kStep);
    case Fact::kForward:
      if (module.Find(FunctionKind::kUpdate) != nullptr) return "there is an @update already";
      for (const auto& f : module.functions()) {
        for (const auto& n : f->body()) {
          if (n->phase != Phase::kForward) {
            return absl::StrCat("%", n->result_name(), " of @", f->name(), " is of the ",
                                PhaseName(n->phase));
          }
        }
      }
      return "";
    case Fact::kUpdate:
      return Missing(module, FunctionKind::kUpdate);
    case Fact::kUnplaced:
      return WhatIsSpread(module);
    case Fact::kLowered:
      for (const auto& f : module.functions()) {
        for (const auto& n : f->body()) {
          if (n->Is("comm.convert")) {
            return absl::StrCat("%", n->result_name(), " of @", f->name(), " is a comm.convert");
          }
        }
      }
      return "";
    case Fact::kChunks:
      return MissingOfChunks(program, FunctionKind::kChunk);
    case Fact::kPhases:
      return MissingOfChunks(program, FunctionKind::kForward);
    case Fact::kScheduled:
      return Unscheduled(program);
  }
  return "";
}

}  // namespace moe::passes
