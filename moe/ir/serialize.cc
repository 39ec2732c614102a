#include "moe/ir/serialize.h"

#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/limits.h"
#include "moe/ir/verifier.h"

namespace moe {
namespace {

using AttributeProtos = google::protobuf::RepeatedPtrField<AttributeProto>;

template <typename... Parts>
absl::Status Error(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

absl::Status CheckName(absl::string_view what, absl::string_view name) {
  if (!name.empty() && static_cast<int64_t>(name.size()) <= kMaxNameLength) return absl::OkStatus();
  return Error(what, " has a name of ", name.size(), " characters; legal are 1 to ", kMaxNameLength);
}

absl::Status CheckCount(absl::string_view what, int64_t count, int64_t most) {
  return count <= most ? absl::OkStatus() : Error(count, " ", what, "; at most ", most, " are allowed");
}

void AxesToProto(const AxisList& axes, AxesProto* proto) {
  for (const AxisId axis : axes) proto->add_axis(axis);
}

absl::StatusOr<AxisList> AxesFromProto(const AxesProto& proto, int num_axes) {
  AxisList axes;
  RETURN_IF_ERROR(CheckCount("axes in a list", proto.axis_size(), kMaxListLength));
  for (const int32_t axis : proto.axis()) {
    if (axis < 0 || axis >= num_axes) return Error("axis ", axis, " does not exist; the mesh has ", num_axes);
    axes.push_back(static_cast<AxisId>(axis));
  }
  return axes;
}

struct AttributeWriter {
  AttributeProto* proto;
  void operator()(bool v) const { proto->set_flag(v); }
  void operator()(int64_t v) const { proto->set_integer(v); }
  void operator()(double v) const { proto->set_real(v); }
  void operator()(const std::string& v) const { proto->set_text(v); }
  void operator()(const std::vector<int64_t>& v) const {
    proto->mutable_ints()->mutable_value()->Add(v.begin(), v.end());
  }
  void operator()(const std::vector<std::string>& v) const {
    proto->mutable_strings()->mutable_value()->Assign(v.begin(), v.end());
  }
  void operator()(const Axes& v) const { AxesToProto(v.list, proto->mutable_axes()); }
};

void AttributesToProto(const Attributes& attributes, AttributeProtos* protos) {
  for (const auto& [name, value] : attributes) {
    AttributeProto* proto = protos->Add();
    proto->set_name(name);
    std::visit(AttributeWriter{proto}, value);
  }
}

absl::StatusOr<Attributes> AttributesFromProto(const AttributeProtos& protos, int num_axes) {
  RETURN_IF_ERROR(CheckCount("attributes", protos.size(), kMaxAttributes));
  Attributes attributes;
  for (const AttributeProto& proto : protos) {
    RETURN_IF_ERROR(CheckName("an attribute", proto.name()));
    Attribute value;
    switch (proto.value_case()) {
      case AttributeProto::kFlag:
        value = proto.flag();
        break;
      case AttributeProto::kInteger:
        value = static_cast<int64_t>(proto.integer());
        break;
      case AttributeProto::kReal:
        value = proto.real();
        break;
      case AttributeProto::kText:
        value = proto.text();
        break;
      case AttributeProto::kInts:
        value = std::vector<int64_t>(proto.ints().value().begin(), proto.ints().value().end());
        break;
      case AttributeProto::kStrings:
        value = std::vector<std::string>(proto.strings().value().begin(), proto.strings().value().end());
        break;
      case AttributeProto::kAxes: {
        ASSIGN_OR_RETURN(AxisList list, AxesFromProto(proto.axes(), num_axes));
        value = Axes{std::move(list)};
        break;
      }
      default:
        return Error("attribute '", proto.name(), "' has no value");
    }
    if (!attributes.emplace(proto.name(), std::move(value)).second) {
      return Error("attribute '", proto.name(), "' appears twice");
    }
  }
  return attributes;
}

void BindingToProto(const Binding& binding, BindingProto* proto) {
  proto->set_kind(std::string(BindingKindName(binding.kind)));
  proto->set_name(binding.name);
  if (binding.peer >= 0) proto->set_peer(binding.peer);
}

absl::StatusOr<Binding> BindingFromProto(const BindingProto& proto) {
  const std::optional<Binding::Kind> kind = ParseBindingKind(proto.kind());
  if (!kind) return Error("unknown kind of binding '", proto.kind().substr(0, kMaxNameLength), "'");
  if (proto.has_peer() && (*kind != Binding::kBoundary || proto.peer() < 0 || proto.peer() > kMaxFunctions)) {
    return Error("a binding to a ", proto.kind(), " with the peer ", proto.peer());
  }
  return Binding(*kind, proto.name(), proto.has_peer() ? proto.peer() : -1);
}

FunctionProto FunctionToProto(const Function& function) {
  FunctionProto proto;
  proto.set_name(function.name());
  std::unordered_map<const Node*, int64_t> first;  // number of a node's first result
  int64_t next = 0;
  for (const Node* arg : function.args()) {
    first[arg] = next++;
    FunctionProto::Arg* out = proto.add_args();
    out->set_name(arg->result_name());
    *out->mutable_type() = ToProto(arg->type());
    AttributesToProto(arg->attributes(), out->mutable_attributes());
    if (arg->binding.kind != Binding::kNone) BindingToProto(arg->binding, out->mutable_binding());
    out->set_scope(arg->scope);
    out->set_pass(arg->provenance.pass);
    out->set_reason(arg->provenance.reason);
  }
  for (const std::unique_ptr<Node>& node : function.body()) {
    NodeProto* out = proto.add_nodes();
    out->set_op(node->op_name());
    for (const Value& v : node->operands()) out->add_operands(first.at(v.node) + v.index);
    for (int i = 0; i < node->num_results(); ++i) {
      out->add_names(node->result_name(i));
      *out->add_types() = ToProto(node->type(i));
    }
    AttributesToProto(node->attributes(), out->mutable_attributes());
    out->set_phase(static_cast<int>(node->phase));
    out->set_queue(static_cast<int>(node->queue));
    out->set_scope(node->scope);
    out->set_pass(node->provenance.pass);
    out->set_reason(node->provenance.reason);
    for (const AxisList& axes : node->assignment) AxesToProto(axes, out->add_assignment());
    first[node.get()] = next;
    next += node->num_results();
  }
  for (int i = 0; i < function.num_results(); ++i) {
    FunctionProto::Result* out = proto.add_results();
    out->set_value(first.at(function.result(i).node) + function.result(i).index);
    const Binding& binding = function.result_binding(i);
    if (binding.kind != Binding::kNone) BindingToProto(binding, out->mutable_binding());
  }
  return proto;
}

class FunctionReader {
 public:
  FunctionReader(const FunctionProto& proto, Function* function, const OpRegistry& registry)
      : proto_(proto), function_(function), mesh_(function->module()->mesh()), registry_(registry) {}

  absl::Status Read() {
    RETURN_IF_ERROR(CheckCount("arguments", proto_.args_size(), kMaxArgs));
    RETURN_IF_ERROR(CheckCount("nodes", proto_.nodes_size(), kMaxNodes));
    RETURN_IF_ERROR(CheckCount("results", proto_.results_size(), kMaxArgs));
    for (int i = 0; i < proto_.args_size(); ++i) {
      RETURN_IF_ERROR(Annotate(ReadArg(proto_.args(i)), absl::StrCat("argument ", i)));
    }
    for (int i = 0; i < proto_.nodes_size(); ++i) {
      RETURN_IF_ERROR(Annotate(ReadNode(proto_.nodes(i)), absl::StrCat("node ", i)));
    }
    for (int i = 0; i < proto_.results_size(); ++i) {
      const FunctionProto::Result& result = proto_.results(i);
      ASSIGN_OR_RETURN(const Value value, ValueOf(result.value()));
      Binding binding;
      if (result.has_binding()) {
        ASSIGN_OR_RETURN(binding, BindingFromProto(result.binding()));
      }
      function_->AddResult(value, std::move(binding));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status TakeName(absl::string_view name) {
    RETURN_IF_ERROR(CheckName("a value", name));
    return names_.insert(std::string(name)).second ? absl::OkStatus() : Error("%", name, " is defined twice");
  }

  absl::StatusOr<Value> ValueOf(int64_t number) const {
    if (number >= 0 && number < static_cast<int64_t>(values_.size())) return values_[number];
    return Error("value ", number, " is used; so far there are ", values_.size());
  }

  absl::Status ReadArg(const FunctionProto::Arg& arg) {
    RETURN_IF_ERROR(TakeName(arg.name()));
    ASSIGN_OR_RETURN(Type type, FromProto(arg.type(), mesh_));
    ASSIGN_OR_RETURN(Attributes attributes, AttributesFromProto(arg.attributes(), mesh_.num_axes()));
    Binding binding;
    if (arg.has_binding()) {
      ASSIGN_OR_RETURN(binding, BindingFromProto(arg.binding()));
    }
    const Value value =
        function_->AddArg(arg.name(), std::move(type), std::move(binding), std::move(attributes));
    value.node->scope = arg.scope();
    value.node->provenance = {arg.pass(), arg.reason()};
    values_.push_back(value);
    return absl::OkStatus();
  }

  absl::Status ReadNode(const NodeProto& proto) {
    const OpDef* op = registry_.Find(proto.op());
    if (op == nullptr) {
      return Error("unknown op '", proto.op().substr(0, kMaxNameLength), "'; the nearest known is ",
                   registry_.Nearest(proto.op()));
    }
    RETURN_IF_ERROR(CheckCount("operands", proto.operands_size(), kMaxOperands));
    RETURN_IF_ERROR(CheckCount("results", proto.types_size(), kMaxResults));
    if (proto.names_size() != proto.types_size()) {
      return Error(op->name, " has ", proto.names_size(), " names for ", proto.types_size(), " results");
    }
    std::vector<Value> operands;
    for (const int64_t number : proto.operands()) {
      ASSIGN_OR_RETURN(const Value value, ValueOf(number));
      operands.push_back(value);
    }
    std::vector<Type> types;
    std::vector<std::string> names(proto.names().begin(), proto.names().end());
    for (const TypeProto& t : proto.types()) {
      ASSIGN_OR_RETURN(Type type, FromProto(t, mesh_));
      types.push_back(std::move(type));
    }
    for (const std::string& name : names) RETURN_IF_ERROR(TakeName(name));
    ASSIGN_OR_RETURN(Attributes attributes, AttributesFromProto(proto.attributes(), mesh_.num_axes()));
    if (proto.phase() < 0 || proto.phase() > static_cast<int>(Phase::kUpdate))
      return Error("phase ", proto.phase());
    if (proto.queue() < 0 || proto.queue() > static_cast<int>(Queue::kCopy))
      return Error("queue ", proto.queue());
    Node* node = function_->Insert(nullptr, op, std::move(operands), std::move(types), std::move(attributes),
                                   std::move(names));
    node->phase = static_cast<Phase>(proto.phase());
    node->queue = static_cast<Queue>(proto.queue());
    node->scope = proto.scope();
    node->provenance = {proto.pass(), proto.reason()};
    for (const AxesProto& axes : proto.assignment()) {
      ASSIGN_OR_RETURN(AxisList list, AxesFromProto(axes, mesh_.num_axes()));
      node->assignment.push_back(std::move(list));
    }
    for (int i = 0; i < node->num_results(); ++i) values_.push_back(node->result(i));
    return VerifyNode(*node);
  }

  const FunctionProto& proto_;
  Function* function_;
  const Mesh& mesh_;
  const OpRegistry& registry_;
  std::vector<Value> values_;
  std::set<std::string> names_;
};

}  // namespace

MeshProto ToProto(const Mesh& mesh) {
  MeshProto proto;
  for (const MeshAxis& axis : mesh.axes()) {
    MeshProto::Axis* out = proto.add_axes();
    out->set_name(axis.name);
    out->set_size(axis.size);
  }
  for (const auto& [name, axes] : mesh.aliases()) {
    MeshProto::Alias* out = proto.add_aliases();
    out->set_name(name);
    AxesToProto(axes, out->mutable_axes());
  }
  return proto;
}

absl::StatusOr<Mesh> FromProto(const MeshProto& proto) {
  RETURN_IF_ERROR(CheckCount("mesh axes", proto.axes_size(), kMaxMeshAxes));
  RETURN_IF_ERROR(CheckCount("mesh aliases", proto.aliases_size(), kMaxAliases));
  std::vector<MeshAxis> axes;
  std::map<std::string, AxisList> aliases;
  for (const MeshProto::Axis& axis : proto.axes()) axes.push_back({axis.name(), axis.size()});
  for (const MeshProto::Alias& alias : proto.aliases()) {
    ASSIGN_OR_RETURN(AxisList list, AxesFromProto(alias.axes(), proto.axes_size()));
    if (!aliases.emplace(alias.name(), std::move(list)).second)
      return Error("alias '", alias.name(), "' appears twice");
  }
  Mesh mesh(std::move(axes), std::move(aliases));
  RETURN_IF_ERROR(VerifyMesh(mesh));
  return mesh;
}

TypeProto ToProto(const Type& type) {
  TypeProto proto;
  proto.set_dtype(std::string(DTypeName(type.dtype)));
  proto.mutable_dims()->Add(type.dims.begin(), type.dims.end());
  bool sharded = false;
  for (const AxisList& axes : type.placement.dims) sharded = sharded || !axes.empty();
  if (sharded) {
    for (const AxisList& axes : type.placement.dims) AxesToProto(axes, proto.add_placement());
  }
  for (const Partial& p : type.placement.partial) {
    TypeProto::PartialProto* out = proto.add_partial();
    out->set_axis(p.axis);
    out->set_max(p.kind == Reduction::kMax);
  }
  if (type.ragged >= 0) proto.set_ragged(type.ragged);
  proto.set_ragged_bound(type.ragged_bound);
  proto.set_future(type.future);
  return proto;
}

absl::StatusOr<Type> FromProto(const TypeProto& proto, const Mesh& mesh) {
  const std::optional<DType> dtype = ParseDType(proto.dtype());
  if (!dtype) return Error("unknown dtype '", proto.dtype().substr(0, kMaxNameLength), "'");
  if (proto.dims_size() > kMaxRank)
    return Error("a type of ", proto.dims_size(), " dims; at most ", kMaxRank, " are allowed");
  Type type(*dtype, Dims(proto.dims().begin(), proto.dims().end()));
  if (proto.placement_size() > 0) {
    if (proto.placement_size() != type.rank())
      return Error("a type of ", type.rank(), " dims with ", proto.placement_size(), " placed");
    for (int d = 0; d < type.rank(); ++d) {
      ASSIGN_OR_RETURN(type.placement.dims[d], AxesFromProto(proto.placement(d), mesh.num_axes()));
    }
  }
  for (const TypeProto::PartialProto& p : proto.partial()) {
    if (p.axis() < 0 || p.axis() >= mesh.num_axes())
      return Error("a partial over axis ", p.axis(), ", which does not exist");
    type.placement.AddPartial({static_cast<AxisId>(p.axis()), p.max() ? Reduction::kMax : Reduction::kSum});
  }
  if (proto.has_ragged()) {
    if (proto.ragged() < 0 || proto.ragged() >= type.rank()) return Error("the ragged dim does not exist");
    type.ragged = proto.ragged();
  }
  type.ragged_bound = proto.ragged_bound();
  type.future = proto.future();
  RETURN_IF_ERROR(VerifyType(type, mesh));
  return type;
}

ModuleProto ToProto(const Module& module) {
  ModuleProto proto;
  proto.set_name(module.name());
  *proto.mutable_mesh() = ToProto(module.mesh());
  AttributesToProto(module.attributes(), proto.mutable_attributes());
  for (const std::unique_ptr<State>& state : module.states()) {
    StateProto* out = proto.add_states();
    out->set_name(state->name);
    *out->mutable_type() = ToProto(state->type);
    AttributesToProto(state->attributes, out->mutable_attributes());
  }
  for (const std::unique_ptr<Function>& function : module.functions())
    *proto.add_functions() = FunctionToProto(*function);
  return proto;
}

absl::StatusOr<std::unique_ptr<Module>> FromProto(const ModuleProto& proto, const OpRegistry& registry) {
  RETURN_IF_ERROR(CheckName("the module", proto.name()));
  RETURN_IF_ERROR(CheckCount("states", proto.states_size(), kMaxStates));
  RETURN_IF_ERROR(CheckCount("functions", proto.functions_size(), kMaxFunctions));
  auto module = std::make_unique<Module>(proto.name());
  ASSIGN_OR_RETURN(module->mesh(), FromProto(proto.mesh()));
  const int num_axes = module->mesh().num_axes();
  ASSIGN_OR_RETURN(module->attributes(), AttributesFromProto(proto.attributes(), num_axes));
  for (const StateProto& s : proto.states()) {
    RETURN_IF_ERROR(CheckName("a state", s.name()));
    const std::string where = absl::StrCat("state @", s.name());
    if (module->FindState(s.name()) != nullptr) return Error(where, " appears twice");
    absl::StatusOr<Type> type = FromProto(s.type(), module->mesh());
    if (!type.ok()) return Annotate(type.status(), where);
    absl::StatusOr<Attributes> attributes = AttributesFromProto(s.attributes(), num_axes);
    if (!attributes.ok()) return Annotate(attributes.status(), where);
    module->AddState({s.name(), *std::move(type), *std::move(attributes)});
  }
  for (const FunctionProto& f : proto.functions()) {
    RETURN_IF_ERROR(CheckName("a function", f.name()));
    if (module->Find(f.name()) != nullptr) return Error("function @", f.name(), " appears twice");
    FunctionReader reader(f, module->AddFunction(f.name()), registry);
    RETURN_IF_ERROR(Annotate(reader.Read(), absl::StrCat("@", f.name())));
  }
  return module;
}

}  // namespace moe
