#include "moe/ir/registry.h"

#include <glog/logging.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "moe/base/edit_distance.h"
#include "moe/base/status.h"
#include "moe/ir/limits.h"
#include "moe/ir/ops/ops.h"

namespace moe {
namespace {

// Attributes that any op may carry.
const std::vector<AttrDef>& UniversalAttrs() {
  static const auto& attrs = *new std::vector<AttrDef>{
      // "residual_stream", "replica_sum": seeds of the shard pass.
      {"tag", AttrKind::kString, false},
      // A hint: the name of the value whose placement this gradient should take.
      {"dual", AttrKind::kString, false},
      // A hint: the name of the value that the result is shaped after.
      {"like", AttrKind::kString, false},
      // ["c=8"]: extents of factors that operands do not give.
      {"extents", AttrKind::kStrings, false},
      // Of decisions: block i of the groups is block order[i] of the batch's.
      {"order", AttrKind::kInts, false},
  };
  return attrs;
}

}  // namespace

absl::string_view AttrKindName(AttrKind kind) {
  switch (kind) {
    case AttrKind::kBool:
      return "bool";
    case AttrKind::kInt:
      return "int";
    case AttrKind::kFloat:
      return "float";
    case AttrKind::kString:
      return "string";
    case AttrKind::kInts:
      return "ints";
    case AttrKind::kStrings:
      return "strings";
    case AttrKind::kAxes:
      return "axes";
  }
  return "?";
}

absl::string_view OpPartName(OpPart part) {
  switch (part) {
    case OpPart::kDoc:
      return "doc";
    case OpPart::kOperands:
      return "operands and results";
    case OpPart::kAttributes:
      return "attributes";
    case OpPart::kInfer:
      return "infer";
    case OpPart::kVerify:
      return "verify";
    case OpPart::kShardingRule:
      return "sharding rule";
    case OpPart::kGradient:
      return "gradient";
    case OpPart::kCost:
      return "cost";
    case OpPart::kEffects:
      return "effects";
  }
  return "?";
}

bool OpDef::IsLinearIn(int operand) const {
  if (linearity != Linearity::kSeparately) return false;
  return linear_all ||
         std::find(linear_operands.begin(), linear_operands.end(), operand) != linear_operands.end();
}

int OpDef::FindResult(absl::string_view result) const {
  const auto it = std::find(result_names.begin(), result_names.end(), result);
  return it == result_names.end() ? -1 : static_cast<int>(it - result_names.begin());
}

OperandDType OpDef::DTypeOf(int operand) const {
  const int declared_operands = static_cast<int>(operand_dtypes.size());
  if (operand < declared_operands) return operand_dtypes[operand];
  if (repeated_dtypes.empty()) return variadic ? operand_dtypes[0] : OperandDType::kCommon;
  return repeated_dtypes[(operand - declared_operands) % repeated_dtypes.size()];
}

int InPlaceOperand(const Node& node, int result) {
  const auto it = node.op().in_place.find(result);
  return it == node.op().in_place.end() || it->second >= node.num_operands() ? -1 : it->second;
}

const AttrDef* OpDef::FindAttr(absl::string_view attr) const {
  for (const AttrDef& a : attrs) {
    if (a.name == attr) return &a;
  }
  for (const AttrDef& a : UniversalAttrs()) {
    if (a.name == attr) return &a;
  }
  return nullptr;
}

absl::Status OpDef::CheckAttributes(const Attributes& attributes) const {
  for (const auto& [attr, value] : attributes) {
    const AttrDef* def = FindAttr(attr);
    if (def == nullptr) return absl::InvalidArgumentError(absl::StrCat("unknown attribute '", attr, "'"));
    if (def->kind != AttrKindOf(value)) {
      return absl::InvalidArgumentError(absl::StrCat("attribute '", attr, "' must be of kind ",
                                                     AttrKindName(def->kind), ", not ",
                                                     AttrKindName(AttrKindOf(value))));
    }
  }
  for (const AttrDef& def : attrs) {
    if (def.required && attributes.count(def.name) == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("the attribute '", def.name, "' is missing (", AttrKindName(def.kind), ")"));
    }
  }
  return absl::OkStatus();
}

absl::Status OpDef::CheckDeclaration() const {
  const auto error = [&](const auto&... parts) { return absl::InvalidArgumentError(absl::StrCat(parts...)); };
  const int operands = static_cast<int>(operand_names.size()),
            results = static_cast<int>(result_names.size());
  const auto has_operand = [&](int i) { return i >= 0 && (variadic || i < operands); };
  const auto has_result = [&](int i) { return i >= 0 && (variadic_results || i < results); };
  if (rule_text.empty() && !rule_fn && !elementwise) return error("the op has no sharding rule");
  if (!rule_text.empty() && !rule_fn && !elementwise) {
    ASSIGN_OR_RETURN(const ShardingRule* rule, InternRule(rule_text));
    const bool none = operands == 0 && rule->operands.size() == 1 && rule->operands[0].empty();
    if (!none && !variadic && static_cast<int>(rule->operands.size()) != operands) {
      return error("the sharding rule '", rule_text, "' is for ", rule->operands.size(),
                   " operands, the op has ", operands, " (", absl::StrJoin(operand_names, ", "), ")");
    }
    if (!variadic_results && static_cast<int>(rule->results.size()) != results) {
      return error("the sharding rule '", rule_text, "' is for ", rule->results.size(),
                   " results, the op has ", results, " (", absl::StrJoin(result_names, ", "), ")");
    }
    std::vector<std::string> factors;
    for (const auto& [factor, _] : factor_from) factors.push_back(factor);
    for (const std::string& factor : {exchanged_factor, routed_factor, ragged_factor}) {
      if (!factor.empty()) factors.push_back(factor);
    }
    if (!ragged_factor.empty()) factors.insert(factors.end(), {"t", "k"});  // they bound it
    for (const std::string& factor : factors) {
      if (rule->Find(factor) < 0) return error("the sharding rule '", rule_text, "' has no factor ", factor);
    }
  }
  for (const auto& [factor, attr] : factor_from) {
    const AttrDef* def = FindAttr(attr);
    if (def == nullptr || def->kind != AttrKind::kInt) {
      return error("the extent of factor ", factor, " comes from '", attr,
                   "', which is not an int attribute");
    }
  }
  if (static_cast<int>(result_dtypes.size()) > results) {
    return error(result_dtypes.size(), " dtypes for ", results, " results");
  }
  std::vector<int> named = linear_operands;
  for (const DTypeRule& rule : result_dtypes) {
    if (rule.kind == DTypeRule::kSameAs || rule.kind == DTypeRule::kWider) named.push_back(rule.operand);
    if (rule.kind != DTypeRule::kAttribute) continue;
    const AttrDef* def = FindAttr(rule.attribute);
    if (def == nullptr || def->kind != AttrKind::kString) {
      return error("a dtype comes from '", rule.attribute, "', which is not a string attribute");
    }
  }
  if (gathered_operand >= 0) named.push_back(gathered_operand);
  for (const auto& [result, operand] : in_place) {
    named.push_back(operand);
    if (!has_result(result))
      return error("result ", result, " is in place; the op has ", results, " results");
  }
  for (const int result : nodiff_results) {
    if (!has_result(result)) return error("result ", result, " is named; the op has ", results, " results");
  }
  for (const int operand : named) {
    if (!has_operand(operand))
      return error("operand ", operand, " is named; the op has ", operands, " operands");
  }
  return absl::OkStatus();
}

OpDef& OpRegistry::Add(OpDef def) {
  CHECK(!def.name.empty());
  auto [it, fresh] = ops_.emplace(def.name, nullptr);
  CHECK(fresh) << "op " << def.name << " is registered twice";
  def.declaration = Annotate(def.CheckDeclaration(), def.name);
  it->second = std::make_unique<OpDef>(std::move(def));
  return *it->second;
}

const OpDef* OpRegistry::Find(absl::string_view name) const {
  auto it = ops_.find(std::string(name));
  return it == ops_.end() ? nullptr : it->second.get();
}

std::vector<const OpDef*> OpRegistry::All() const {
  std::vector<const OpDef*> out;
  for (const auto& [_, op] : ops_) out.push_back(op.get());
  return out;
}

std::string OpRegistry::Nearest(absl::string_view name) const {
  std::string best;
  int64_t distance = std::numeric_limits<int64_t>::max();
  for (const auto& [candidate, _] : ops_) {
    const int64_t d = EditDistance(name.substr(0, 64), candidate);
    if (d < distance) {
      distance = d;
      best = candidate;
    }
  }
  return best;
}

const OpRegistry& Ops() {
  static const OpRegistry& registry = *[] {
    auto* r = new OpRegistry;
    RegisterMathOps(r);
    RegisterNnOps(r);
    RegisterMoeOps(r);
    RegisterCommOps(r);
    RegisterOptimOps(r);
    RegisterFusedOps(r);
    return r;
  }();
  return registry;
}

absl::StatusOr<std::vector<int64_t>> FactorExtents(const Node& n) {
  ASSIGN_OR_RETURN(const ShardingRule* rule, n.Rule());
  const OpDef& op = n.op();
  if (n.num_operands() > 0 && static_cast<int>(rule->operands.size()) != n.num_operands()) {
    return absl::InvalidArgumentError(absl::StrCat(op.name, " has ", n.num_operands(),
                                                   " operands, its rule '", rule->ToString(), "' has ",
                                                   rule->operands.size()));
  }
  std::vector<int64_t> extent(rule->num_factors(), 0);
  // `where`: says what gives the extent, when that is an error.
  const auto set = [&](int f, int64_t value, auto where) -> absl::Status {
    if (value >= 1 && value <= kMaxExtent && (extent[f] == 0 || extent[f] == value)) {
      extent[f] = value;
      return absl::OkStatus();
    }
    if (value < 1 || value > kMaxExtent) {
      return absl::InvalidArgumentError(absl::StrCat(op.name, ": ", where(), " gives the factor ",
                                                     rule->factors[f], " the extent ", value,
                                                     "; legal are 1 to ", kMaxExtent));
    }
    return absl::InvalidArgumentError(absl::StrCat(op.name, ": factor ", rule->factors[f], " is ", extent[f],
                                                   " but ", where(), " has ", value, " (rule ",
                                                   rule->ToString(), ")"));
  };
  for (const auto& [factor, attr] : op.factor_from) {
    const int f = rule->Find(factor);
    if (f < 0 || !n.Has(attr)) continue;
    const std::string& name = attr;
    RETURN_IF_ERROR(set(f, n.Int(name), [&] { return absl::StrCat("attribute ", name); }));
  }
  if (n.Has("extents")) {
    for (const std::string& e : n.Strings("extents")) {
      const std::vector<std::string> kv = absl::StrSplit(e, '=');
      int64_t value = 0;
      if (kv.size() != 2 || !absl::SimpleAtoi(kv[1], &value) || value < 1) {
        return absl::InvalidArgumentError(
            absl::StrCat(op.name, ": extents entry '", e, "' should read factor=extent, extent >= 1"));
      }
      const int f = rule->Find(kv[0]);
      if (f < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat(op.name, ": extents names factor '", kv[0], "', the rule is ", rule->ToString()));
      }
      RETURN_IF_ERROR(set(f, value, [] { return "attribute extents"; }));
    }
  }
  for (int i = 0; i < n.num_operands(); ++i) {
    const Type& t = n.operand(i).type();
    const FactorTerm& term = rule->operands[i];
    if (t.rank() != static_cast<int>(term.size())) {
      return absl::InvalidArgumentError(absl::StrCat(op.name, ": operand ", i, " has ", t.rank(),
                                                     " dims, the rule '", rule->ToString(), "' has ",
                                                     term.size()));
    }
    for (int d = 0; d < t.rank(); ++d) {
      if (term[d].size() != 1) continue;
      RETURN_IF_ERROR(set(term[d][0], t.dims[d], [&] { return absl::StrCat("operand ", i, " dim ", d); }));
    }
  }
  for (int i = 0; i < n.num_operands(); ++i) {  // products: all but one factor known gives the last
    const Type& t = n.operand(i).type();
    for (int d = 0; d < t.rank(); ++d) {
      const FactorDim& dim = rule->operands[i][d];
      if (dim.size() == 1) continue;
      int64_t known = 1;
      int unknown = -1, unknowns = 0;
      for (FactorId f : dim) {
        if (extent[f] == 0) {
          unknown = f;
          ++unknowns;
        } else {
          known = known > kMaxExtent / extent[f] ? kMaxExtent + 1 : known * extent[f];
        }
      }
      if (unknowns > 1 || t.dims[d] % known != 0 || (unknowns == 0 && known != t.dims[d])) {
        return absl::InvalidArgumentError(
            absl::StrCat(op.name, ": operand ", i, " dim ", d, " has extent ", t.dims[d],
                         ", which is not a product of extents for the rule '", rule->ToString(), "'"));
      }
      if (unknowns == 1) extent[unknown] = t.dims[d] / known;
    }
  }
  for (int f = 0; f < rule->num_factors(); ++f) {
    if (extent[f] == 0) {
      return absl::InvalidArgumentError(absl::StrCat(op.name, ": nothing gives the extent of factor ",
                                                     rule->factors[f], " (rule ", rule->ToString(), ")"));
    }
  }
  return extent;
}

namespace {
absl::StatusOr<DType> ResultDType(const Node& n, const DTypeRule& rule) {
  if (rule.kind == DTypeRule::kFixed) return rule.fixed;
  if (rule.kind == DTypeRule::kAttribute && n.Has(rule.attribute)) {
    const std::optional<DType> dtype = ParseDType(n.String(rule.attribute));
    if (dtype) return *dtype;
    return absl::InvalidArgumentError(
        absl::StrCat(n.op_name(), ": unknown dtype '", n.String(rule.attribute), "'"));
  }
  if (rule.operand >= n.num_operands()) {
    return absl::InvalidArgumentError(absl::StrCat(n.op_name(), ": a result has the dtype of operand ",
                                                   rule.operand, "; there are ", n.num_operands(),
                                                   " operands"));
  }
  const DType dtype = n.operand(rule.operand).type().dtype;
  return rule.kind == DTypeRule::kWider ? AtLeastF32(dtype) : dtype;
}
}  // namespace

absl::StatusOr<std::vector<Type>> InferTypes(const Node& n) {
  const OpDef& op = n.op();
  if (op.infer) return op.infer(n);
  ASSIGN_OR_RETURN(const ShardingRule* rule, n.Rule());
  ASSIGN_OR_RETURN(std::vector<int64_t> extent, FactorExtents(n));
  std::vector<int64_t> ragged_bound(rule->num_factors(), 0);
  for (int i = 0; i < n.num_operands(); ++i) {
    const Type& t = n.operand(i).type();
    if (t.ragged >= 0) ragged_bound[rule->operands[i][t.ragged][0]] = t.ragged_bound;
  }
  if (!op.ragged_factor.empty() && n.BoolOr("dropless", false)) {
    // What one group can send to all experts together: each of its tokens, k times.
    const int t = rule->Find("t"), k = rule->Find("k");
    const int p = rule->Find(op.ragged_factor);
    if (ragged_bound[p] == 0) ragged_bound[p] = extent[t] * extent[k];
  }
  std::vector<Type> out;
  for (size_t r = 0; r < rule->results.size(); ++r) {
    Type t;
    ASSIGN_OR_RETURN(t.dtype, ResultDType(n, r < op.result_dtypes.size() ? op.result_dtypes[r] : SameAs(0)));
    const FactorTerm& term = rule->results[r];
    for (size_t d = 0; d < term.size(); ++d) {
      int64_t size = 1;
      for (FactorId f : term[d]) {
        if (extent[f] > kMaxExtent / size) {
          return absl::InvalidArgumentError(
              absl::StrCat(op.name, ": dim ", d, " of result ", r, " exceeds ", kMaxExtent));
        }
        size *= extent[f];
      }
      t.dims.push_back(size);
      if (term[d].size() == 1 && ragged_bound[term[d][0]] > 0) {
        t.ragged = static_cast<int>(d);
        t.ragged_bound = ragged_bound[term[d][0]];
      }
    }
    t.placement = Placement::Replicated(t.rank());
    out.push_back(std::move(t));
  }
  return out;
}

absl::StatusOr<NodePlacements> PlaceNode(const Node& n, const ShardingRule& rule,
                                         absl::Span<const int64_t> extents,
                                         const FactorAssignment& assignment,
                                         absl::Span<const PassedPartial> passed, const Mesh& mesh) {
  const OpDef& op = n.op();
  auto error = [&](auto... parts) {
    return absl::InvalidArgumentError(absl::StrCat(op.name, ": ", parts...));
  };
  if (static_cast<int>(assignment.size()) != rule.num_factors()) {
    return error("assignment has ", assignment.size(), " entries for ", rule.num_factors(), " factors");
  }
  for (int f = 0; f < rule.num_factors(); ++f) {
    if (assignment[f].empty()) continue;
    if (rule.fixed[f]) return error("factor ", rule.factors[f], " may not be sharded");
    if (rule.factors[f] == op.exchanged_factor) {
      return error("with the factor ", rule.factors[f], " sharded, this is an exchange between ranks");
    }
    if (extents[f] % mesh.Size(assignment[f]) != 0) {
      return error("factor ", rule.factors[f], " of extent ", extents[f], " does not divide over ",
                   mesh.Show(assignment[f]), " = ", mesh.Size(assignment[f]));
    }
  }
  absl::Status status;
  auto dims_of = [&](const FactorTerm& term) {
    absl::InlinedVector<AxisList, 6> dims;
    for (const FactorDim& dim : term) {
      AxisList axes;
      bool exhausted = true;
      for (FactorId f : dim) {
        if (!assignment[f].empty()) {
          if (!exhausted)
            status = error("factor ", rule.factors[f], " is sharded before its majors are exhausted");
          axes.insert(axes.end(), assignment[f].begin(), assignment[f].end());
        }
        exhausted = exhausted && mesh.Size(assignment[f]) == extents[f];
      }
      dims.push_back(std::move(axes));
    }
    return dims;
  };
  NodePlacements out;
  for (int i = 0; i < n.num_operands(); ++i) {
    Placement p;
    p.dims = dims_of(rule.operands[i]);
    for (const PassedPartial& x : passed) {
      const bool legal = x.operand < 0 ? op.linearity == Linearity::kJointly : op.IsLinearIn(x.operand);
      if (!legal) return error("no partial may pass through operand ", x.operand);
      if (x.operand < 0 || x.operand == i) p.AddPartial({x.axis, Reduction::kSum});
    }
    out.operands.push_back(std::move(p));
  }
  for (size_t r = 0; r < rule.results.size(); ++r) {
    Placement p;
    p.dims = dims_of(rule.results[r]);
    for (int f = 0; f < rule.num_factors(); ++f) {
      if (op.variadic_results) break;  // each tensor is on its own: nothing is reduced
      if (assignment[f].empty() || rule.InResult(static_cast<int>(r), static_cast<FactorId>(f)) ||
          !rule.InOperands(static_cast<FactorId>(f))) {
        continue;
      }
      for (AxisId a : assignment[f]) p.AddPartial({a, op.reduction});
    }
    for (const PassedPartial& x : passed) p.AddPartial({x.axis, Reduction::kSum});
    out.results.push_back(std::move(p));
  }
  if (!status.ok()) return status;
  return out;
}

}  // namespace moe
