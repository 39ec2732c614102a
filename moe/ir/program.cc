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
  }
  return "?";
}

}  // namespace moe
