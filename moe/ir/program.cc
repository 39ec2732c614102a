#include "moe/ir/program.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

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

std::string ChunkFunctionName(Action::Kind kind, int chunk) {
  const char* name = kind == Action::kForward     ? "forward"
                     : kind == Action::kBackward  ? "backward"
                     : kind == Action::kInputGrad ? "input_grad"
                                                  : "weight_grad";
  return absl::StrCat(name, chunk);
}

int ChunkOfFunction(absl::string_view name) {
  for (const char* kind : {"forward", "backward", "input_grad", "weight_grad"}) {
    if (!absl::ConsumePrefix(&name, kind)) continue;
    int chunk = -1;
    return absl::SimpleAtoi(name, &chunk) && chunk >= 0 ? chunk : -1;
  }
  return -1;
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

}  // namespace moe
