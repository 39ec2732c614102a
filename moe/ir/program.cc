#include "moe/ir/program.h"

#include "absl/strings/str_cat.h"

namespace moe {

std::string ActionToString(const Action& a) {
  auto cell = [&](const char* kind) { return absl::StrCat(kind, a.chunk, ".", a.microbatch); };
  auto transfer = [&](const char* verb, const char* arrow) {
    return absl::StrCat(verb, " ", a.boundary, " mb", a.microbatch, " ", arrow, " stage ", a.peer_stage);
  };
  switch (a.kind) {
    case Action::kForward:
      return cell("F");
    case Action::kBackward:
      return cell("B");
    case Action::kInputGrad:
      return cell("I");
    case Action::kWeightGrad:
      return cell("W");
    case Action::kSend:
      return transfer("send", "->");
    case Action::kRecv:
      return transfer("recv", "<-");
    case Action::kReset:
      return "reset";
    case Action::kUpdate:
      return "update";
    case Action::kReport:
      return "report";
  }
  return "?";
}

FunctionKind KindOfFunction(Action::Kind kind) {
  switch (kind) {
    case Action::kForward:
      return FunctionKind::kForward;
    case Action::kBackward:
      return FunctionKind::kBackward;
    case Action::kInputGrad:
      return FunctionKind::kInputGrad;
    case Action::kWeightGrad:
      return FunctionKind::kWeightGrad;
    case Action::kUpdate:
      return FunctionKind::kUpdate;
    case Action::kReport:
      return FunctionKind::kReport;
    case Action::kSend:
    case Action::kRecv:
    case Action::kReset:
      return FunctionKind::kOther;
  }
  return FunctionKind::kOther;
}

FunctionRole RoleOf(const Action& a, int stage) {
  const FunctionRole role(KindOfFunction(a.kind), a.chunk);
  if (role.kind == FunctionKind::kOther) return {};
  return role.IsOfMicrobatch() ? role : FunctionRole(role.kind, stage);
}

Function* FunctionOf(const Module& module, const Action& a, int stage) {
  const FunctionRole role = RoleOf(a, stage);
  return role.kind == FunctionKind::kOther ? nullptr : module.Find(role);
}

std::string InputName(const Binding& binding) {
  return absl::StrCat(BindingKindName(binding.kind), ":", binding.name);
}

absl::string_view SpaceName(Space space) {
  switch (space) {
    case Space::kState:
      return "state";
    case Space::kInput:
      return "input";
    case Space::kResidual:
      return "residual";
    case Space::kBoundary:
      return "boundary";
    case Space::kFrame:
      return "frame";
    case Space::kSpill:
      return "spill";
    case Space::kWeightResidual:
      return "weight residual";
    case Space::kFuture:
      return "future";
  }
  return "?";
}

int Schedule::CopyOfMicrobatch(int microbatch) const {
  if (copies == 1) return 0;
  for (const auto& row : table) {
    for (const Cell& c : row) {
      if (c.microbatch == microbatch) return CopyOfChunk(c.chunk);
    }
  }
  return 0;
}

int Schedule::StageOf(FunctionRole role) const {
  const auto within = [](int i, size_t n) { return i >= 0 && i < static_cast<int>(n); };
  if (role.IsOfMicrobatch()) return within(role.index, chunk_stage.size()) ? chunk_stage[role.index] : -1;
  const bool of_stage = role.kind == FunctionKind::kUpdate || role.kind == FunctionKind::kReport;
  return of_stage && within(role.index, table.size()) ? role.index : -1;
}

Program CloneProgram(const Program& program) {
  Program clone;
  clone.module = CloneModule(*program.module);
  clone.schedule = program.schedule;
  clone.memory = program.memory;
  clone.notes = program.notes;
  clone.inventory = program.inventory;
  return clone;
}

}  // namespace moe
