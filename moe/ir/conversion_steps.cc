#include "moe/ir/conversion_steps.h"

#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace moe {
namespace {

constexpr std::pair<StepKind, const char*> kNames[] = {
    {StepKind::kZero, "zero"},
    {StepKind::kSlice, "slice"},
    {StepKind::kReduceScatter, "reduce_scatter"},
    {StepKind::kAllReduce, "all_reduce"},
    {StepKind::kAllToAll, "all_to_all"},
    {StepKind::kAllGather, "all_gather"},
    {StepKind::kPermute, "permute"},
    {StepKind::kRotate, "rotate"},
};
constexpr int kMaxDim = 64;  // more than any tensor has

std::string RoleName(int role) {
  switch (role) {
    case Placement::kNone:
      return "-";
    case Placement::kSum:
      return "sum";
    case Placement::kMax:
      return "max";
    default:
      return absl::StrCat(role);
  }
}

std::optional<int> ParseRole(absl::string_view text) {
  if (text == "-") return Placement::kNone;
  if (text == "sum") return Placement::kSum;
  if (text == "max") return Placement::kMax;
  int dim;
  if (!absl::SimpleAtoi(text, &dim) || dim < 0 || dim >= kMaxDim) return std::nullopt;
  return dim;
}

absl::StatusOr<Move> ParseMove(absl::string_view text, const Mesh& mesh) {
  const auto bad = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat(
        "steps: ", why, " in '", text, "'; a move is axis:from>to, roles are a dim, -, sum or max"));
  };
  const size_t colon = text.find(':'), arrow = text.find('>');
  if (colon == absl::string_view::npos || arrow == absl::string_view::npos || arrow < colon)
    return bad("no move");
  const std::optional<AxisId> axis = mesh.Find(text.substr(0, colon));
  if (!axis) return bad("unknown axis");
  const std::optional<int> from = ParseRole(text.substr(colon + 1, arrow - colon - 1));
  const std::optional<int> to = ParseRole(text.substr(arrow + 1));
  if (!from || !to) return bad("unknown role");
  return Move{*axis, *from, *to};
}

}  // namespace

absl::string_view StepKindName(StepKind kind) { return kNames[static_cast<int>(kind)].second; }

bool IsLocal(StepKind kind) { return kind == StepKind::kZero || kind == StepKind::kSlice; }

AxisList ConversionStep::axes() const {
  AxisList axes;
  for (const Move& m : moves) axes.push_back(m.axis);
  return axes;
}

std::string PrintSteps(const std::vector<ConversionStep>& steps, const Mesh& mesh) {
  return absl::StrJoin(steps, "; ", [&](std::string* out, const ConversionStep& step) {
    absl::StrAppend(out, StepKindName(step.kind));
    for (const Move& m : step.moves) {
      absl::StrAppend(out, " ", mesh.name(m.axis), ":", RoleName(m.from), ">", RoleName(m.to));
    }
  });
}

absl::StatusOr<std::vector<ConversionStep>> ParseSteps(absl::string_view text, const Mesh& mesh) {
  std::vector<ConversionStep> steps;
  for (absl::string_view part : absl::StrSplit(text, ';', absl::SkipWhitespace())) {
    const std::vector<absl::string_view> words = absl::StrSplit(part, ' ', absl::SkipWhitespace());
    ConversionStep step;
    bool known = false;
    for (const auto& [kind, name] : kNames) {
      if (words[0] != name) continue;
      step.kind = kind;
      known = true;
    }
    if (!known) {
      return absl::InvalidArgumentError(absl::StrCat(
          "steps: unknown kind '", words[0], "'; known: ",
          absl::StrJoin(kNames, ", ", [](std::string* out, const auto& n) { out->append(n.second); })));
    }
    for (size_t i = 1; i < words.size(); ++i) {
      absl::StatusOr<Move> move = ParseMove(words[i], mesh);
      if (!move.ok()) return move.status();
      for (const Move& other : step.moves) {
        if (other.axis == move->axis) {
          return absl::InvalidArgumentError(absl::StrCat("steps: axis ", mesh.name(move->axis),
                                                         " moves twice in '",
                                                         absl::StripAsciiWhitespace(part), "'"));
        }
      }
      step.moves.push_back(*move);
    }
    if (step.moves.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("steps: '", words[0], "' moves no axis"));
    }
    steps.push_back(std::move(step));
  }
  return steps;
}

}  // namespace moe
