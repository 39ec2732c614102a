#include "moe/ir/verifier.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "moe/base/status.h"
#include "moe/ir/limits.h"
#include "moe/ir/registry.h"
#include "moe/ir/stored_rows.h"
#include "moe/ir/verify_placement.h"

namespace moe {
namespace {

constexpr int kMaxProblems = 50;

// "f32[8, ~5<=32]": what inference decides, without the placement.
std::string Shape(const Type& type) {
  Type shape = type;
  shape.placement = Placement::Replicated(type.rank());
  return TypeToString(shape, Mesh());
}

bool SameShape(const Type& a, const Type& b) {
  return a.dtype == b.dtype && a.dims == b.dims && a.ragged == b.ragged && a.ragged_bound == b.ragged_bound &&
         a.future == b.future;
}

bool IsAxisName(absl::string_view name) {
  bool word = !name.empty() && name.size() <= kMaxNameLength && !absl::ascii_isdigit(name[0]);
  for (const char c : name) word = word && (absl::ascii_isalnum(c) || c == '_');
  return word;
}

// A factor is ragged in all operands that have it, or in none.
absl::Status VerifyRagged(const Node& node, const ShardingRule& rule) {
  std::vector<int64_t> bound(rule.num_factors(), -1);
  for (int i = 0; i < node.num_operands(); ++i) {
    const Type& t = node.operand(i).type();
    for (int d = 0; d < t.rank(); ++d) {
      const int64_t mine = d == t.ragged ? t.ragged_bound : 0;
      for (const FactorId f : rule.operands[i][d]) {
        if (bound[f] < 0) bound[f] = mine;
        if (bound[f] == mine) continue;
        return absl::InvalidArgumentError(
            absl::StrCat("factor ", rule.factors[f], " is ragged with the bound ", mine, " in operand ", i,
                         " and ", bound[f], " in an earlier one (0: not ragged)"));
      }
    }
  }
  return absl::OkStatus();
}

// The rule has one term per operand and result, of the right number of dims.
absl::Status VerifyRuleRanks(const Node& node) {
  ASSIGN_OR_RETURN(const ShardingRule* rule, node.Rule());
  const size_t operand_terms =
      rule->operands.size() == 1 && rule->operands[0].empty() && node.num_operands() == 0
          ? 0
          : rule->operands.size();
  if (operand_terms != node.num_operands() || rule->results.size() != node.num_results()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the rule '", rule->ToString(), "' is for ", operand_terms, " operands and ", rule->results.size(),
        " results; the node has ", node.num_operands(), " and ", node.num_results()));
  }
  for (int i = 0; i < node.num_operands(); ++i) {
    const int rank = node.operand(i).type().rank();
    if (static_cast<int>(rule->operands[i].size()) != rank) {
      return absl::InvalidArgumentError(absl::StrCat("operand ", i, " (", Shape(node.operand(i).type()),
                                                     ") has ", rank, " dims; the rule '", rule->ToString(),
                                                     "' has ", rule->operands[i].size()));
    }
  }
  return VerifyRagged(node, *rule);
}

// Kernels are chosen by one dtype: values have it in common, indices are s32, and what the op declares wide
// is f32 at least. Nothing converts silently.
absl::Status VerifyOperandDTypes(const Node& node) {
  const OpDef& op = node.op();
  const auto name = [&](int i) { return op.variadic ? op.operand_names[0] : op.operand_names[i]; };
  int first = -1;
  for (int i = 0; i < node.num_operands(); ++i) {
    const DType dtype = node.operand(i).type().dtype;
    if (op.DTypeOf(i) == OperandDType::kIndex) {
      if (dtype == DType::kS32) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("operand ", i, " (", name(i), ") must be s32, not ", DTypeName(dtype)));
    }
    if (op.DTypeOf(i) == OperandDType::kAnyFloat && IsFloat(dtype)) continue;
    if (first < 0) first = i;
    const DType common = node.operand(first).type().dtype;
    if (dtype == (op.IsWide(i) ? AtLeastF32(common) : common)) continue;
    if (op.IsWide(i) && AtLeastF32(common) != common) {
      return absl::InvalidArgumentError(absl::StrCat("operand ", i, " (", name(i), ") is ", DTypeName(dtype),
                                                     "; it must be ", DTypeName(AtLeastF32(common)),
                                                     " beside operand ", first, " of ", DTypeName(common)));
    }
    return absl::InvalidArgumentError(absl::StrCat("operand ", i, " (", name(i), ") is ", DTypeName(dtype),
                                                   ", operand ", first, " is ", DTypeName(common),
                                                   "; math.cast converts"));
  }
  return absl::OkStatus();
}

class Verifier {
 public:
  explicit Verifier(const Mesh& mesh, const VerifyOptions& options = {}) : mesh_(mesh), options_(options) {}

  void CheckMesh();
  void CheckModule(const Module& module);
  void CheckFunction(const Function& function);
  absl::Status Result(const std::string& what) const;

 private:
  void Problem(const Function* function, const Node* node, absl::string_view message);
  void CheckName(const Function* function, absl::string_view what, absl::string_view name);
  void CheckNames(const Function& function);
  void CheckOrder(const Function& function);
  void CheckUses(const Function& function, const Node& definition);
  void CheckBindings(const Function& function);
  void CheckBinding(const Function& function, const Binding& binding, const Value& value, bool result);
  void CheckNode(const Node& node);

  const Mesh& mesh_;
  const VerifyOptions options_;
  std::vector<std::string> problems_;
  int more_ = 0;
  // Place of every node of the function under check; arguments are -1, the return node comes last.
  absl::flat_hash_map<const Node*, int64_t> place_;
};

void Verifier::Problem(const Function* function, const Node* node, absl::string_view message) {
  if (problems_.size() >= kMaxProblems) {
    ++more_;
    return;
  }
  std::string line;
  if (function != nullptr) absl::StrAppend(&line, "@", function->name(), ": ");
  if (node != nullptr) {
    for (int i = 0; i < node->num_results(); ++i)
      absl::StrAppend(&line, i ? ", %" : "%", node->result_name(i));
    absl::StrAppend(&line, node->num_results() ? " = " : "", node->op_name(), ": ");
  }
  problems_.push_back(absl::StrCat(line, message));
}

absl::Status Verifier::Result(const std::string& what) const {
  if (problems_.empty()) return absl::OkStatus();
  const int total = static_cast<int>(problems_.size()) + more_;
  return absl::InvalidArgumentError(absl::StrCat(total, total == 1 ? " problem in " : " problems in ", what,
                                                 ":\n  ", absl::StrJoin(problems_, "\n  "),
                                                 more_ ? absl::StrCat("\n  and ", more_, " more") : ""));
}

void Verifier::CheckMesh() {
  std::set<std::string> names;
  int64_t ranks = 1;
  for (int i = 0; i < mesh_.num_axes(); ++i) {
    const MeshAxis& axis = mesh_.axes()[i];
    if (!IsAxisName(axis.name))
      Problem(nullptr, nullptr, absl::StrCat("'", axis.name, "' is not the name of a mesh axis"));
    if (!names.insert(axis.name).second) {
      Problem(nullptr, nullptr, absl::StrCat("mesh axis '", axis.name, "' appears twice"));
    }
    if (axis.size < 1 || axis.size > kMaxAxisSize) {
      Problem(nullptr, nullptr, absl::StrCat("mesh axis '", axis.name, "' has the size ", axis.size));
    } else if (axis.size > kMaxRanks / ranks) {
      Problem(nullptr, nullptr, absl::StrCat("the mesh has more than ", kMaxRanks, " ranks"));
    } else {
      ranks *= axis.size;
    }
    if (axis.name == "pp" && i != 0) Problem(nullptr, nullptr, "the axis 'pp' is not the first of the mesh");
  }
  for (const auto& [name, axes] : mesh_.aliases()) {
    if (!IsAxisName(name))
      Problem(nullptr, nullptr, absl::StrCat("'", name, "' is not the name of an alias"));
    for (const AxisId axis : axes) {
      if (axis < 0 || axis >= mesh_.num_axes()) {
        Problem(nullptr, nullptr,
                absl::StrCat("alias '", name, "' names an axis that the mesh does not have"));
      }
    }
    if (names.count(name) > 0 && mesh_.Find(name) && !axes.empty() && axes != AxisList{*mesh_.Find(name)}) {
      Problem(nullptr, nullptr,
              absl::StrCat("alias '", name, "' has the name of an axis but means something else"));
    }
  }
}

void Verifier::CheckName(const Function* function, absl::string_view what, absl::string_view name) {
  if (name.empty()) {
    Problem(function, nullptr, absl::StrCat(what, " has no name"));
  } else if (name.size() > kMaxNameLength) {
    Problem(function, nullptr,
            absl::StrCat(what, " has a name of ", name.size(), " characters; at most ", kMaxNameLength,
                         " are allowed"));
  }
}

void Verifier::CheckModule(const Module& module) {
  CheckMesh();
  if (!problems_.empty()) return;  // types mean nothing on a mesh that is none
  CheckName(nullptr, "the module", module.name());
  for (const std::unique_ptr<State>& state : module.states()) {
    CheckName(nullptr, "a state", state->name);
    const absl::Status type = VerifyType(state->type, mesh_);
    if (!type.ok()) Problem(nullptr, nullptr, absl::StrCat("state @", state->name, ": ", type.message()));
    const std::string rows = StoredRowsProblem(module, *state);
    if (!rows.empty()) Problem(nullptr, nullptr, absl::StrCat("state @", state->name, ": ", rows));
  }
  std::set<absl::string_view> names;
  for (const std::unique_ptr<Function>& function : module.functions()) {
    CheckName(nullptr, "a function", function->name());
    if (!names.insert(function->name()).second) {
      Problem(nullptr, nullptr, absl::StrCat("function @", function->name(), " appears twice"));
    }
    CheckFunction(*function);
  }
}

void Verifier::CheckNames(const Function& function) {
  absl::flat_hash_set<absl::string_view> names;
  names.reserve(place_.size());
  const auto check = [&](const Node& node) {
    for (int i = 0; i < node.num_results(); ++i) {
      const std::string& name = node.result_name(i);
      CheckName(&function, "a value", name);
      if (!names.insert(name).second) Problem(&function, &node, absl::StrCat("%", name, " is defined twice"));
    }
  };
  for (const Node* arg : function.args()) check(*arg);
  for (const std::unique_ptr<Node>& node : function.body()) check(*node);
}

// Every operand is a result of an earlier node of this function.
void Verifier::CheckOrder(const Function& function) {
  const auto check = [&](const Node& node) {
    const int64_t place = place_.at(&node);
    for (int i = 0; i < node.num_operands(); ++i) {
      const Value& v = node.operand(i);
      const auto definition = place_.find(v.node);
      if (v.node == nullptr) {
        Problem(&function, &node, absl::StrCat("operand ", i, " is missing"));
      } else if (definition == place_.end()) {
        Problem(
            &function, &node,
            absl::StrCat("operand ", i, ", %", v.name(), ", is a value of ",
                         v.node->function() == &function ? "a node that was erased" : "another function"));
      } else if (v.index < 0 || v.index >= v.node->num_results()) {
        Problem(&function, &node,
                absl::StrCat("operand ", i, " is result ", v.index, " of ", v.node->op_name(), ", which has ",
                             v.node->num_results()));
      } else if (definition->second >= place) {
        Problem(&function, &node, absl::StrCat("%", v.name(), " is used before its definition"));
      }
    }
  };
  for (const std::unique_ptr<Node>& node : function.body()) check(*node);
  check(*function.return_node());
}

void Verifier::CheckUses(const Function& function, const Node& definition) {
  for (int i = 0; i < definition.num_results(); ++i) {
    for (const Use& use : definition.uses(i)) {
      const bool known = place_.count(use.user) > 0 && use.operand < use.user->num_operands();
      if (!known || use.user->operand(use.operand) != Value{const_cast<Node*>(&definition), i}) {
        Problem(&function, &definition,
                absl::StrCat("%", definition.result_name(i), " lists a use that does not exist"));
      }
    }
  }
}

void Verifier::CheckNode(const Node& node) {
  absl::Status status = VerifyNode(node);
  if (!status.ok()) {
    // VerifyNode begins with the op, which Problem names already.
    absl::string_view message = status.message();
    absl::ConsumePrefix(&message, absl::StrCat(node.op_name(), ": "));
    return Problem(node.function(), &node, message);
  }
  for (int i = 0; i < node.num_results(); ++i) {
    status = VerifyType(node.type(i), mesh_);
    if (!status.ok())
      return Problem(node.function(), &node, absl::StrCat("%", node.result_name(i), ": ", status.message()));
    if (node.type(i).future && node.uses(i).empty()) {
      Problem(node.function(), &node, absl::StrCat("nobody waits for the future %", node.result_name(i)));
    }
  }
  if (!options_.unplaced_nodes || !IsUnplaced(node)) status = VerifyPlacement(node, mesh_);
  if (!status.ok()) Problem(node.function(), &node, status.message());
  if (absl::StrContains(node.provenance.pass, ": ")) {
    Problem(node.function(), &node, "the name of the pass in its provenance contains ': '");
  }
}

void Verifier::CheckBinding(const Function& function, const Binding& binding, const Value& value,
                            bool result) {
  const auto problem = [&](const auto&... parts) {
    Problem(&function, nullptr, absl::StrCat(result ? "result %" : "argument %", value.name(), parts...));
  };
  if (binding.kind == Binding::kNone) {
    if (!binding.name.empty()) problem(" has a binding without a kind");
    return;
  }
  const absl::string_view kind = BindingKindName(binding.kind);
  const auto legal = result ? &IsOfResults : &IsOfArguments;
  if (!legal(binding.kind)) {
    return problem(" is bound to a ", kind, "; legal are ", BindingKindNames(legal));
  }
  if (binding.name.empty()) return problem(" is bound to a ", kind, " without a name");
  if ((binding.kind == Binding::kFuture) != value.type().future) {
    return problem(" is ", TypeToString(value.type(), mesh_), " and bound to a ", kind,
                   "; a future must be bound to a future, and any other value must not");
  }
  if (!binding.IsState() || function.module() == nullptr) return;
  const State* state = function.module()->FindState(binding.name);
  if (state == nullptr) {
    return problem(" is bound to the state @", binding.name, ", which the module does not have");
  }
  const bool same =
      options_.unplaced_nodes ? SameShape(state->type, value.type()) : state->type == value.type();
  if (!same) {
    problem(" is ", TypeToString(value.type(), mesh_), ", its state @", binding.name, " is ",
            TypeToString(state->type, mesh_));
  }
}

void Verifier::CheckBindings(const Function& function) {
  absl::flat_hash_set<std::pair<Binding::Kind, absl::string_view>> read, written;
  const auto once = [&](const Binding& binding, absl::string_view what, auto* seen) {
    if (binding.kind == Binding::kNone || seen->insert({binding.kind, binding.name}).second) return;
    Problem(
        &function, nullptr,
        absl::StrCat("two ", what, " are bound to ", BindingKindName(binding.kind), " '", binding.name, "'"));
  };
  for (const Node* arg : function.args()) {
    CheckBinding(function, arg->binding, Value{const_cast<Node*>(arg), 0}, false);
    once(arg->binding, "arguments", &read);
  }
  for (int i = 0; i < function.num_results(); ++i) {
    const Binding& binding = function.result_binding(i);
    CheckBinding(function, binding, function.result(i), true);
    // Reports of one name are summed by the host.
    if (binding.kind != Binding::kReport) once(binding, "results", &written);
  }
}

void Verifier::CheckFunction(const Function& function) {
  place_.clear();
  place_.reserve(function.args().size() + function.num_nodes() + 1);
  int64_t place = 0;
  for (const Node* arg : function.args()) place_[arg] = -1;
  for (const std::unique_ptr<Node>& node : function.body()) place_[node.get()] = place++;
  place_[function.return_node()] = place;

  const size_t before = problems_.size();
  CheckNames(function);
  CheckOrder(function);
  if (problems_.size() > before) return;  // the rest follows operands
  for (const Node* arg : function.args()) {
    const absl::Status type = VerifyType(arg->type(), mesh_);
    if (!type.ok()) Problem(&function, arg, type.message());
    CheckUses(function, *arg);
  }
  Phase phase = Phase::kForward;
  for (const std::unique_ptr<Node>& node : function.body()) {
    CheckNode(*node);
    CheckUses(function, *node);
    if (node->phase < phase) {
      Problem(&function, node.get(),
              absl::StrCat("a ", PhaseName(node->phase), " node stands after the ", PhaseName(phase),
                           " phase has begun"));
    }
    phase = std::max(phase, node->phase);
  }
  CheckBindings(function);
}

}  // namespace

absl::Status VerifyType(const Type& type, const Mesh& mesh) {
  const auto error = [&](auto... parts) { return absl::InvalidArgumentError(absl::StrCat(parts...)); };
  if (type.rank() > kMaxRank)
    return error("a type of ", type.rank(), " dims; at most ", kMaxRank, " are allowed");
  if (static_cast<int>(type.placement.dims.size()) != type.rank()) {
    return error("a type of ", type.rank(), " dims with a placement of ", type.placement.dims.size());
  }
  if (type.ragged < -1 || type.ragged >= type.rank())
    return error("the ragged dim ", type.ragged, " does not exist");
  if (type.ragged < 0 ? type.ragged_bound != 0 : type.ragged_bound < 1 || type.ragged_bound > kMaxExtent) {
    return error("a ragged bound of ", type.ragged_bound, type.ragged < 0 ? " without a ragged dim" : "");
  }
  AxisList seen;
  const auto take = [&](AxisId axis) -> absl::Status {
    if (axis < 0 || axis >= mesh.num_axes())
      return error("axis ", axis, " does not exist in ", mesh.ToString());
    if (mesh.name(axis) == "pp") return error("a placement names 'pp'; stages are separate programs");
    if (std::find(seen.begin(), seen.end(), axis) != seen.end()) {
      return error("axis '", mesh.name(axis), "' appears twice in a type");
    }
    seen.push_back(axis);
    return absl::OkStatus();
  };
  // Elements at the larger of expected extent and bound, so that every size computed from the type fits 64
  // bits.
  int64_t elements = 1;
  for (int d = 0; d < type.rank(); ++d) {
    const int64_t extent = type.dims[d];
    if (extent < 1 || extent > kMaxExtent) {
      return error("dim ", d, " is ", extent, "; legal are 1 to ", kMaxExtent);
    }
    const int64_t most = d == type.ragged ? std::max(extent, type.ragged_bound) : extent;
    if (most > kMaxElements / elements) return error("a type of more than ", kMaxElements, " elements");
    elements *= most;
    for (const AxisId axis : type.placement.dims[d]) RETURN_IF_ERROR(take(axis));
    const AxisList& axes = type.placement.dims[d];
    if (d == type.ragged && !axes.empty())
      return error("the ragged dim ", d, " is sharded over ", mesh.Show(axes));
    if (extent % mesh.Size(axes) != 0) {
      return error("dim ", d, " of ", extent, " is not divisible by the ", mesh.Size(axes), " ranks of ",
                   mesh.Show(axes));
    }
  }
  for (size_t i = 0; i < type.placement.partial.size(); ++i) {
    RETURN_IF_ERROR(take(type.placement.partial[i].axis));
    if (i > 0 && !(type.placement.partial[i - 1] < type.placement.partial[i]))
      return error("partials are not sorted");
  }
  return absl::OkStatus();
}

absl::Status VerifyNode(const Node& node) {
  const OpDef& op = node.op();
  const auto check = [&]() -> absl::Status {
    const bool arity_ok = op.variadic ? node.num_operands() >= 1
                                      : node.num_operands() == static_cast<int>(op.operand_names.size());
    if (!arity_ok) {
      return absl::InvalidArgumentError(
          absl::StrCat("takes ", op.variadic ? "one or more" : absl::StrCat(op.operand_names.size()),
                       " operands (", absl::StrJoin(op.operand_names, ", "), "), not ", node.num_operands()));
    }
    if (!op.variadic_results && node.num_results() != static_cast<int>(op.result_names.size())) {
      return absl::InvalidArgumentError(
          absl::StrCat("has ", op.result_names.size(), " results, not ", node.num_results()));
    }
    RETURN_IF_ERROR(op.CheckAttributes(node.attributes()));
    RETURN_IF_ERROR(VerifyOperandDTypes(node));
    for (int i = 0; i < node.num_operands(); ++i) {
      if (!node.operand(i).type().future || (op.name == "comm.done" && i == 0)) continue;
      return absl::InvalidArgumentError(absl::StrCat("operand ", i, " (%", node.operand(i).name(),
                                                     ") is a future; comm.done waits for it"));
    }
    RETURN_IF_ERROR(VerifyRuleRanks(node));
    ASSIGN_OR_RETURN(const std::vector<Type> inferred, InferTypes(node));
    for (int i = 0; i < node.num_results(); ++i) {
      const Type &is = node.type(i), &should = inferred[i];
      if (SameShape(is, should)) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("result %", node.result_name(i), " must be ", Shape(should), ", not ", Shape(is)));
    }
    return op.verify ? op.verify(node) : absl::OkStatus();
  };
  return Annotate(check(), op.name);
}

absl::Status VerifyMesh(const Mesh& mesh) {
  Verifier verifier(mesh);
  verifier.CheckMesh();
  return verifier.Result("the mesh");
}

absl::Status Verify(const Module& module, const VerifyOptions& options) {
  Verifier verifier(module.mesh(), options);
  verifier.CheckModule(module);
  return verifier.Result(absl::StrCat("module @", module.name()));
}

absl::Status Verify(const Function& function) {
  static const Mesh& none = *new Mesh();
  Verifier verifier(function.module() == nullptr ? none : function.module()->mesh());
  verifier.CheckFunction(function);
  return verifier.Result(absl::StrCat("function @", function.name()));
}

}  // namespace moe
