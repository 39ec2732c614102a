#include "moe/ir/registry.h"

#include <glog/logging.h>

#include <algorithm>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "moe/base/status.h"
#include "moe/ir/limits.h"
#include "moe/ir/ops/ops.h"

namespace moe {
namespace {

// Attributes that any op may carry.
const std::vector<AttrDef>& UniversalAttrs() {
  static const auto& attrs = *new std::vector<AttrDef>{
      {"tag", AttrKind::kString, false},  // "residual_stream", "replica_sum": seeds of the shard pass
      {"dual", AttrKind::kString,
       false},  // name of the value whose placement this gradient should take: a hint
      {"like", AttrKind::kString, false},      // name of the value that the result is shaped after: a hint
      {"extents", AttrKind::kStrings, false},  // ["c=8"]: extents of factors that operands do not give
      {"order", AttrKind::kInts, false},  // decisions: block i of the groups is block order[i] of the batch's
  };
  return attrs;
}

bool HoldsIndices(absl::string_view operand_name) {
  static const auto& names = *new std::set<absl::string_view>{
      "ids", "labels", "expert", "slot", "expert_map", "positions", "q_positions", "k_positions"};
  return names.count(operand_name) > 0;
}

int EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<int> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int previous = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = previous;
    }
  }
  return row[b.size()];
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

bool OpDef::IsLinearIn(int operand) const {
  if (linearity != Linearity::kSeparately) return false;
  return linear_all ||
         std::find(linear_operands.begin(), linear_operands.end(), operand) != linear_operands.end();
}

int OpDef::FindResult(absl::string_view result) const {
  const auto it = std::find(result_names.begin(), result_names.end(), result);
  return it == result_names.end() ? -1 : static_cast<int>(it - result_names.begin());
}

bool OpDef::IsWide(int operand) const {
  return std::find(wide_operands.begin(), wide_operands.end(), operand) != wide_operands.end();
}

bool OpDef::IsIndex(int operand) const {
  return !index_operands.empty() && index_operands[variadic ? 0 : operand];
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

OpDef& OpRegistry::Add(OpDef def) {
  CHECK(!def.name.empty());
  auto [it, fresh] = ops_.emplace(def.name, nullptr);
  CHECK(fresh) << "op " << def.name << " is registered twice";
  for (const std::string& operand : def.operand_names) def.index_operands.push_back(HoldsIndices(operand));
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
  int distance = 1 << 30;
  for (const auto& [candidate, _] : ops_) {
    const int d = EditDistance(name.substr(0, 64), candidate);
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
                                                     " dims, the rule '", rule->ToString(), "' wants ",
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
        return absl::InvalidArgumentError(absl::StrCat(op.name, ": operand ", i, " dim ", d, " has extent ",
                                                       t.dims[d], ", which is no product for the rule '",
                                                       rule->ToString(), "'"));
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
    const absl::string_view want =
        r < op.result_dtypes.size() ? absl::string_view(op.result_dtypes[r]) : "=0";
    if (want[0] == '=' || want[0] == '^') {
      int operand = 0;
      CHECK(absl::SimpleAtoi(want.substr(1), &operand)) << op.name;
      t.dtype = n.operand(operand).type().dtype;
      if (want[0] == '^') t.dtype = AtLeastF32(t.dtype);
    } else if (want[0] == '@') {
      t.dtype = n.operand(0).type().dtype;
      if (const std::string said = n.StringOr(want.substr(1), ""); !said.empty()) {
        const std::optional<DType> dtype = ParseDType(said);
        if (!dtype) return absl::InvalidArgumentError(absl::StrCat(op.name, ": unknown dtype '", said, "'"));
        t.dtype = *dtype;
      }
    } else {
      t.dtype = *ParseDType(want);
    }
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
