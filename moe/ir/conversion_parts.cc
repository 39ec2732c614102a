#include "moe/ir/conversion_parts.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"

namespace moe {
namespace {

absl::StatusOr<ConversionStep> StepToldByTypes(const Node& n, int part, const Mesh& mesh) {
  ASSIGN_OR_RETURN(ConversionStep step,
                   StepBetween(n.operand(part).type().placement, n.type(part).placement, n.axes(), mesh));
  if (ConvertsOne(n) && StepKindOfOp(n.op_name()) != step.kind) {
    return absl::InvalidArgumentError(absl::StrCat("its types are those of comm.", StepKindName(step.kind)));
  }
  return step;
}

absl::Status MovesAxesOf(const Node& n, const std::vector<ConversionStep>& steps, const Mesh& mesh) {
  std::set<AxisId> moved;
  for (const ConversionStep& step : steps) {
    for (const Move& m : step.moves) moved.insert(m.axis);
  }
  if (moved == std::set<AxisId>(n.axes().begin(), n.axes().end())) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("its steps move other axes (", PrintSteps(steps, mesh),
                                                 ") than [", mesh.Show(n.axes()), "]"));
}

}  // namespace

Type ArrivedType(Type type) {
  type.future = false;
  return type;
}

Value ArrivedValue(Value v) {
  if (!v.type().future || v.node->Is("arg") || v.node->uses(v.index).size() != 1) return v;
  Node* user = v.node->uses(v.index)[0].user;
  return user->Is("comm.done") ? user->result() : v;
}

bool CrossesFunctions(const Node& n) {
  if (!n.Is("comm.start")) return false;
  for (int r = 0; r < n.num_results(); ++r) {
    for (const Use& u : n.uses(r)) {
      if (u.user->Is("return")) return true;
    }
  }
  return false;
}

bool HasConversionParts(const Node& n) {
  return n.Has("axes") && absl::StartsWith(n.op_name(), "comm.") && !n.Is("comm.convert");
}

bool ConvertsOne(const Node& n) {
  return HasConversionParts(n) && !n.Is("comm.bucket") && !n.Is("comm.start");
}

absl::StatusOr<std::vector<ConversionPart>> ConversionParts(const Node& n, const Mesh& mesh) {
  std::vector<std::string> texts;  // empty: the types tell
  if (n.Has("parts")) {
    texts = n.Strings("parts");
  } else if (n.Has("steps")) {
    texts = {n.String("steps")};
  }
  const int parts = texts.empty() ? n.num_operands() : static_cast<int>(texts.size());
  if (parts != n.num_operands() || parts != n.num_results()) {
    return absl::InvalidArgumentError(absl::StrCat(n.op_name(), " has ", parts, " parts for ",
                                                   n.num_operands(), " operands and ", n.num_results(),
                                                   " results"));
  }
  std::vector<ConversionPart> out;
  for (int i = 0; i < parts; ++i) {
    ConversionPart part;
    part.from = n.operand(i);
    part.to = ArrivedType(n.type(i));
    if (texts.empty()) {
      ASSIGN_OR_RETURN(ConversionStep step, StepToldByTypes(n, i, mesh));
      part.steps.push_back(std::move(step));
    } else {
      ASSIGN_OR_RETURN(part.steps, ParseSteps(texts[i], mesh));
      RETURN_IF_ERROR(MovesAxesOf(n, part.steps, mesh));
    }
    out.push_back(std::move(part));
  }
  return out;
}

Attributes ConversionAttributes(const Placement& from, const Placement& to,
                                const std::vector<ConversionStep>& steps, const Mesh& mesh) {
  AxisList axes;
  for (const ConversionStep& step : steps) {
    for (const AxisId a : step.axes()) {
      if (std::find(axes.begin(), axes.end(), a) == axes.end()) axes.push_back(a);
    }
  }
  Attributes attributes = {{"axes", axes}};
  bool told = steps.size() == 1;
  if (told) {
    const absl::StatusOr<ConversionStep> step = StepBetween(from, to, axes, mesh);
    told = step.ok() && *step == steps[0];
  }
  if (!told) attributes["steps"] = PrintSteps(steps, mesh);
  return attributes;
}

Attributes StartAttributes(const Node& n) {
  Attributes attributes = n.attributes();
  if (n.Has("steps")) attributes["parts"] = std::vector<std::string>{n.String("steps")};
  attributes.erase("steps");
  attributes.erase("dim");
  return attributes;
}

}  // namespace moe
