#include "moe/ir/conversion_steps.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "moe/base/status.h"

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

// How the ranks of an axis hold a value.
enum class Held { kWhole, kPartial, kShard };
Held HeldBy(int role) {
  return role == Placement::kNone ? Held::kWhole : role >= 0 ? Held::kShard : Held::kPartial;
}

// What steps change. A permute and a rotation keep how a value is held.
struct Change {
  StepKind kind;
  Held from, to;
};
constexpr Change kChanges[] = {
    {StepKind::kZero, Held::kWhole, Held::kPartial},
    {StepKind::kSlice, Held::kWhole, Held::kShard},
    {StepKind::kReduceScatter, Held::kPartial, Held::kShard},
    {StepKind::kAllReduce, Held::kPartial, Held::kWhole},
    {StepKind::kAllToAll, Held::kShard, Held::kShard},
    {StepKind::kAllGather, Held::kShard, Held::kWhole},
};

const Change* FindChange(StepKind kind) {
  for (const Change& c : kChanges) {
    if (c.kind == kind) return &c;
  }
  return nullptr;
}

std::string Where(int role) {
  switch (HeldBy(role)) {
    case Held::kWhole:
      return "replicated";
    case Held::kPartial:
      return "partial";
    case Held::kShard:
      break;
  }
  return absl::StrCat("a shard of dim ", role);
}

absl::string_view HeldName(Held held) {
  return held == Held::kWhole ? "replicated" : held == Held::kPartial ? "partial" : "a shard";
}

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

std::optional<StepKind> StepKindOfOp(absl::string_view op) {
  if (!absl::ConsumePrefix(&op, "comm.")) return std::nullopt;
  for (const auto& [kind, name] : kNames) {
    if (op == name) return kind;
  }
  return std::nullopt;
}

bool IsLocal(StepKind kind) { return kind == StepKind::kZero || kind == StepKind::kSlice; }

bool Performs(StepKind kind, int from, int to) {
  const Change* c = FindChange(kind);
  return c != nullptr && from != to && c->from == HeldBy(from) && c->to == HeldBy(to);
}

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

absl::StatusOr<ConversionStep> StepBetween(const Placement& from, const Placement& to, const AxisList& axes,
                                           const Mesh& mesh) {
  ConversionStep step;
  std::optional<StepKind> kind;
  for (const AxisId axis : axes) {
    const Move m = {axis, from.Role(axis), to.Role(axis)};
    std::optional<StepKind> mine;
    if (m.from == m.to && m.from >= 0) mine = from == to ? StepKind::kRotate : StepKind::kPermute;
    for (const Change& c : kChanges) {
      if (Performs(c.kind, m.from, m.to)) mine = c.kind;
    }
    if (!mine) {
      return absl::InvalidArgumentError(absl::StrCat("no step takes axis '", mesh.name(axis), "' from ",
                                                     Where(m.from), " to ", Where(m.to)));
    }
    const bool sum_and_max = kind && m.from < 0 && m.from != step.moves[0].from;
    if (kind && (*kind != *mine || sum_and_max)) {
      return absl::InvalidArgumentError(
          absl::StrCat("axes '", mesh.name(step.moves[0].axis), "' and '", mesh.name(axis),
                       "' do not move alike; the attribute `steps` says how the moves follow each other"));
    }
    if (std::count(axes.begin(), axes.end(), axis) > 1) {
      return absl::InvalidArgumentError(absl::StrCat("names axis '", mesh.name(axis), "' twice"));
    }
    kind = mine;
    step.moves.push_back(m);
  }
  if (!kind) return absl::InvalidArgumentError("names no axis");
  step.kind = *kind;
  return step;
}

absl::StatusOr<Type> TypeAfter(StepKind kind, const Type& type, const AxisList& axes, std::optional<int> dim,
                               const Mesh& mesh) {
  const auto error = [&](const auto&... parts) { return absl::InvalidArgumentError(absl::StrCat(parts...)); };
  Type out = type;
  if (kind == StepKind::kRotate) return out;
  const Change* change = FindChange(kind);
  if (change == nullptr) return error("its result type says which order the axes take; give it");
  Placement& p = out.placement;
  for (const AxisId axis : axes) {
    if (axis < 0 || axis >= mesh.num_axes()) return error("names an axis that the mesh does not have");
    const int role = p.Role(axis);
    if (HeldBy(role) != change->from) {
      return error("the operand is ", Where(role), " over axis '", mesh.name(axis), "'; it must be ",
                   HeldName(change->from));
    }
    if (change->from == Held::kPartial) {
      p.partial.erase(std::find_if(p.partial.begin(), p.partial.end(),
                                   [&](const Partial& partial) { return partial.axis == axis; }));
    } else if (change->from == Held::kShard) {
      if (change->to == Held::kWhole && dim && *dim != role) {
        return error("axis '", mesh.name(axis), "' shards dim ", role, ", not dim ", *dim);
      }
      AxisList& from = p.dims[role];
      from.erase(std::find(from.begin(), from.end(), axis));
    }
    if (change->to == Held::kPartial) p.AddPartial({axis});
  }
  for (int d = 0; d < type.rank(); ++d) {
    const AxisList &was = type.placement.dims[d], &is = p.dims[d];
    if (!std::equal(is.begin(), is.end(), was.begin())) {
      return error("the axes ", mesh.Show(was), " of dim ", d, " leave it from the last one on");
    }
  }
  if (change->to != Held::kShard) return out;
  if (!dim) return error("needs `dim`, which the axes shard from now on, or its result type");
  if (*dim < 0 || *dim >= type.rank() || *dim == type.ragged) {
    return error("dim = ", *dim, " of ", TypeToString(type, mesh), "; it must be one of the ", type.rank(),
                 " dims, and not a ragged one");
  }
  for (const AxisId axis : axes) {
    if (type.placement.Role(axis) == *dim)
      return error("axis '", mesh.name(axis), "' shards dim ", *dim, " already");
    p.dims[*dim].push_back(axis);
  }
  if (type.dims[*dim] % mesh.Size(p.dims[*dim]) != 0) {
    return error("dim ", *dim, " of ", type.dims[*dim], " is not divisible by the ", mesh.Size(p.dims[*dim]),
                 " ranks of ", mesh.Show(p.dims[*dim]));
  }
  return out;
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
