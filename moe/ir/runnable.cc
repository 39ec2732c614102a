#include "moe/ir/runnable.h"

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"

namespace moe {
namespace {

absl::Status Lacks(absl::string_view what, absl::string_view pass) {
  return absl::FailedPreconditionError(absl::StrCat("the plan is incomplete: ", what,
                                                    "; this is the work of the pass ", pass,
                                                    ", which the pipeline must run"));
}

// Every parameter is the state that some result is bound to.
absl::Status CheckUpdates(const Module& module) {
  std::set<absl::string_view> written;
  for (const auto& f : module.functions()) {
    for (int r = 0; r < f->num_results(); ++r) {
      if (f->result_binding(r).IsState()) written.insert(f->result_binding(r).name);
    }
  }
  for (const auto& state : module.states()) {
    if (AttrString(state->attributes, "kind") != "parameter" || written.count(state->name) > 0) continue;
    return Lacks(absl::StrCat("nothing updates the parameter @", state->name), "autodiff");
  }
  return absl::OkStatus();
}

absl::Status CheckPlaced(const Module& module) {
  bool placed = module.mesh().ranks_per_stage() == 1;
  for (const auto& f : module.functions()) {
    for (const auto& node : f->body()) {
      placed = placed || !node->assignment.empty();
      if (!node->Is("comm.convert")) continue;
      return Lacks(absl::StrCat("the conversion %", node->result_name(), " in @", f->name(),
                                " is not lowered to collectives"),
                   "insert-collectives");
    }
  }
  if (placed) return absl::OkStatus();
  return Lacks(
      absl::StrCat("no node is placed on the ", module.mesh().ranks_per_stage(), " ranks of a stage"),
      "shard");
}

absl::Status CheckPhases(const Program& program) {
  for (int c = 0; c < static_cast<int>(program.schedule.chunk_stage.size()); ++c) {
    const auto has = [&](FunctionKind kind) {
      return program.module->Find(FunctionRole(kind, c)) != nullptr;
    };
    const bool split = has(FunctionKind::kInputGrad) && has(FunctionKind::kWeightGrad);
    for (const FunctionKind kind : {FunctionKind::kForward, FunctionKind::kBackward}) {
      if (has(kind) || (kind == FunctionKind::kBackward && split)) continue;
      return Lacks(absl::StrCat("chunk ", c, " has no function @", FunctionRole(kind, c).Name()),
                   "split-phases");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckActions(const Program& program) {
  const size_t stages = program.module->mesh().num_stages();
  for (const char* name : {"train_step", "eval"}) {
    const auto it = program.schedule.actions.find(name);
    if (it != program.schedule.actions.end() && it->second.size() == stages) continue;
    return Lacks(absl::StrCat("the program ", name, " has no actions on the ", stages, " stages"),
                 "schedule");
  }
  return absl::OkStatus();
}

absl::Status CheckMemory(const Program& program) {
  const size_t stages = program.module->mesh().num_stages();
  if (program.memory.stages.size() != stages) {
    return Lacks(absl::StrCat("no memory is planned on the ", stages, " stages"), "plan-memory");
  }
  for (const auto& f : program.module->functions()) {
    if (program.memory.functions.count(f->name()) > 0) continue;
    return Lacks(absl::StrCat("values of @", f->name(), " have no place in memory"), "plan-memory");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRunnable(const Program& program) {
  if (program.schedule.chunk_stage.empty()) {
    return Lacks("the step is not cut into chunks of stages", "partition-stages");
  }
  RETURN_IF_ERROR(CheckPlaced(*program.module));
  RETURN_IF_ERROR(CheckPhases(program));
  RETURN_IF_ERROR(CheckActions(program));
  return CheckMemory(program);
}

absl::Status CheckTrainable(const Program& program) {
  RETURN_IF_ERROR(CheckUpdates(*program.module));
  return CheckRunnable(program);
}

}  // namespace moe
