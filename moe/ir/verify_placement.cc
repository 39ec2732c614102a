#include "moe/ir/verify_placement.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/ir/conversion_parts.h"

namespace moe {
namespace {

template <typename... Parts>
absl::Status Error(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

bool IsPartial(int role) { return role == Placement::kSum || role == Placement::kMax; }

// May `op` take an axis from one role to another?
bool Performs(absl::string_view op, int from, int to) {
  if (const std::optional<StepKind> kind = StepKindOfOp(op)) return Performs(*kind, from, to);
  // convert, reshard: everything but what no exchange of data can do.
  return !(from >= 0 && IsPartial(to)) && !(IsPartial(from) && IsPartial(to));
}

absl::Status VerifyPart(const Node& node, int part, const Mesh& mesh) {
  const Placement &from = node.operand(part).type().placement, &to = node.type(part).placement;
  const AxisList& axes = node.axes();
  for (const AxisId axis : axes) {
    if (axis < 0 || axis >= mesh.num_axes()) return Error("names an axis that the mesh does not have");
  }
  for (const AxisId axis : mesh.SpmdAxes()) {
    const int before = from.Role(axis), after = to.Role(axis);
    if (before == after) continue;
    if (std::find(axes.begin(), axes.end(), axis) == axes.end()) {
      return Error("axis '", mesh.name(axis), "' changes from ", PlacementToString(from, mesh), " to ",
                   PlacementToString(to, mesh), " but is not in axes");
    }
    if (!Performs(node.op_name(), before, after)) {
      return Error("does not take axis '", mesh.name(axis), "' from ", PlacementToString(from, mesh), " to ",
                   PlacementToString(to, mesh));
    }
  }
  if (!node.Has("dim")) return absl::OkStatus();
  const int64_t dim = node.Int("dim");
  for (const AxisId axis : axes) {
    const int before = from.Role(axis), after = to.Role(axis);
    if ((after >= 0 ? after : before) == dim) continue;
    return Error("has dim = ", dim, " and takes axis '", mesh.name(axis), "' from ",
                 PlacementToString(from, mesh), " to ", PlacementToString(to, mesh));
  }
  return absl::OkStatus();
}

absl::Status VerifyConversion(const Node& node, const Mesh& mesh) {
  for (int part = 0; part < node.num_results(); ++part) RETURN_IF_ERROR(VerifyPart(node, part, mesh));
  return HasConversionParts(node) ? ConversionParts(node, mesh).status() : absl::OkStatus();
}

// What comes has the placement of the future.
absl::Status VerifyDone(const Node& node, const Mesh& mesh) {
  const Placement &future = node.operand(0).type().placement, &is = node.type().placement;
  if (is == future) return absl::OkStatus();
  return Error("gives ", PlacementToString(is, mesh), " where the future is ",
               PlacementToString(future, mesh));
}

// The sum partials that enter a linear op and leave it in its results. Errors: a partial that the op cannot
// pass.
absl::StatusOr<std::vector<PassedPartial>> PassedThrough(const Node& node, const Mesh& mesh) {
  const OpDef& op = node.op();
  std::vector<PassedPartial> passed;
  for (const AxisId axis : mesh.SpmdAxes()) {
    std::vector<int> operands;
    for (int i = 0; i < node.num_operands(); ++i) {
      const int role = node.operand(i).type().placement.Role(axis);
      if (role == Placement::kMax) {
        return Error("operand ", i, " (%", node.operand(i).name(), ") is a max-partial over '",
                     mesh.name(axis), "', which no op passes");
      }
      if (role == Placement::kSum) operands.push_back(i);
    }
    if (operands.empty()) continue;
    if (op.linearity == Linearity::kJointly) {
      passed.push_back({axis, -1});  // all operands must be: the comparison with the types tells
      continue;
    }
    if (operands.size() > 1 || !op.IsLinearIn(operands[0])) {
      return Error("operand ", operands[0], " (%", node.operand(operands[0]).name(), ") is partial over '",
                   mesh.name(axis), "'; ",
                   operands.size() > 1 ? "one operand at a time may be" : "the op is not linear in it");
    }
    passed.push_back({axis, operands[0]});
  }
  return passed;
}

absl::Status VerifyAssignment(const Node& node, const ShardingRule& rule,
                              absl::Span<const PassedPartial> passed, const Mesh& mesh) {
  AxisList used;
  for (const PassedPartial& p : passed) used.push_back(p.axis);
  for (int f = 0; f < rule.num_factors(); ++f) {
    for (const AxisId axis : node.assignment[f]) {
      if (axis < 0 || axis >= mesh.num_axes())
        return Error("factor ", rule.factors[f], " is placed on an axis that the mesh lacks");
      if (mesh.name(axis) == "pp")
        return Error("factor ", rule.factors[f], " is placed on 'pp'; stages are separate programs");
      // Tensors on their own share axes; within one, its type says whether an axis appears twice.
      const bool taken = std::find(used.begin(), used.end(), axis) != used.end();
      if (taken && !node.op().variadic_results) {
        return Error("factor ", rule.factors[f], " is placed on '", mesh.name(axis),
                     "', which another factor or a partial operand uses");
      }
      if (!taken) used.push_back(axis);
    }
  }
  return absl::OkStatus();
}

bool AnyResultPlaced(const Node& node) {
  for (int i = 0; i < node.num_results(); ++i) {
    if (!node.type(i).placement.IsReplicated()) return true;
  }
  return false;
}

bool AnyPlaced(const Node& node) {
  for (int i = 0; i < node.num_operands(); ++i) {
    if (!node.operand(i).type().placement.IsReplicated()) return true;
  }
  return AnyResultPlaced(node);
}

}  // namespace

bool IsConversion(const OpDef& op) {
  return absl::StartsWith(op.name, "comm.") &&
         std::any_of(op.attrs.begin(), op.attrs.end(), [](const AttrDef& a) { return a.name == "axes"; });
}

absl::StatusOr<FactorAssignment> AssignmentFromTypes(const Node& node, const Mesh& mesh) {
  FactorAssignment assignment;
  if (!AnyResultPlaced(node)) return assignment;
  ASSIGN_OR_RETURN(const ShardingRule* rule, node.Rule());
  ASSIGN_OR_RETURN(const std::vector<int64_t> extents, FactorExtents(node));
  assignment.resize(rule->num_factors());
  const auto read = [&](const FactorTerm& term, const Placement& placement) {
    for (size_t d = 0; d < term.size() && d < placement.dims.size(); ++d) {
      const AxisList& axes = placement.dims[d];
      size_t next = 0;
      for (const FactorId f : term[d]) {
        AxisList taken;
        while (next < axes.size()) {
          const bool fits = extents[f] % (mesh.Size(taken) * mesh.size(axes[next])) == 0;
          if (!fits && term[d].size() > 1) break;
          taken.push_back(axes[next++]);
        }
        if (assignment[f].empty()) assignment[f] = taken;
      }
    }
  };
  for (int i = 0; i < node.num_operands(); ++i) read(rule->operands[i], node.operand(i).type().placement);
  for (int i = 0; i < node.num_results(); ++i) read(rule->results[i], node.type(i).placement);
  return assignment;
}

bool IsUnplaced(const Node& node) {
  return node.assignment.empty() && !IsConversion(node.op()) && !AnyResultPlaced(node);
}

absl::Status VerifyPlacement(const Node& node, const Mesh& mesh) {
  if (IsConversion(node.op())) return VerifyConversion(node, mesh);
  if (node.Is("comm.done")) return VerifyDone(node, mesh);
  ASSIGN_OR_RETURN(const ShardingRule* rule, node.Rule());
  if (node.assignment.empty() && rule->num_factors() > 0) {
    if (!AnyPlaced(node)) return absl::OkStatus();  // a logical node
    return Error("its operands or results are placed on mesh axes, but its factors are not (rule ",
                 rule->ToString(), ")");
  }
  if (static_cast<int>(node.assignment.size()) != rule->num_factors()) {
    return Error("places ", node.assignment.size(), " factors; the rule ", rule->ToString(), " has ",
                 rule->num_factors());
  }
  ASSIGN_OR_RETURN(const std::vector<PassedPartial> passed, PassedThrough(node, mesh));
  RETURN_IF_ERROR(VerifyAssignment(node, *rule, passed, mesh));
  ASSIGN_OR_RETURN(const std::vector<int64_t> extents, FactorExtents(node));
  ASSIGN_OR_RETURN(const NodePlacements want, PlaceNode(node, *rule, extents, node.assignment, passed, mesh));
  for (int i = 0; i < node.num_operands(); ++i) {
    const Placement& is = node.operand(i).type().placement;
    if (is == want.operands[i]) continue;
    return Error("operand ", i, " (%", node.operand(i).name(), ") is ", PlacementToString(is, mesh),
                 ", the placement of the factors requires ", PlacementToString(want.operands[i], mesh));
  }
  for (int i = 0; i < node.num_results(); ++i) {
    const Placement& is = node.type(i).placement;
    if (is == want.results[i]) continue;
    return Error("result %", node.result_name(i), " is ", PlacementToString(is, mesh),
                 ", the placement of the factors gives ", PlacementToString(want.results[i], mesh));
  }
  for (int result = 0; result < node.num_results(); ++result) {
    const int operand = InPlaceOperand(node, result);
    if (operand < 0) continue;
    if (!(node.type(result) == node.operand(operand).type())) {
      return Error("result %", node.result_name(result), " takes over the storage of operand ", operand, " (",
                   TypeToString(node.operand(operand).type(), mesh), ") but is ",
                   TypeToString(node.type(result), mesh));
    }
  }
  return absl::OkStatus();
}

}  // namespace moe
