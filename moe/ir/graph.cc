#include "moe/ir/graph.h"

#include <glog/logging.h>

#include <algorithm>
#include <unordered_map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "moe/base/status.h"
#include "moe/ir/registry.h"

namespace moe {

absl::string_view PhaseName(Phase phase) {
  switch (phase) {
    case Phase::kForward:
      return "forward";
    case Phase::kBackward:
      return "backward";
    case Phase::kUpdate:
      return "update";
  }
  return "?";
}

const Type& Value::type() const { return node->type(index); }
const std::string& Value::name() const { return node->result_name(index); }
bool Value::HasOneUse() const { return node->uses(index).size() == 1; }
bool operator<(const Value& a, const Value& b) {
  const int64_t ia = a.node ? a.node->id() : -1, ib = b.node ? b.node->id() : -1;
  return std::pair(ia, a.index) < std::pair(ib, b.index);
}

// ----------------------------------------------------------------------------------------------------------
// Node

const std::string& Node::op_name() const { return op_->name; }

void Node::SetOperand(int i, Value value) {
  Value old = operands_[i];
  if (old == value) return;
  if (old) {
    std::vector<Use>& uses = old.node->uses_[old.index];
    uses.erase(std::find_if(uses.begin(), uses.end(),
                            [&](const Use& u) { return u.user == this && u.operand == i; }));
  }
  operands_[i] = value;
  if (value) value.node->uses_[value.index].push_back({this, i});
}

void Node::AddOperand(Value value) {
  operands_.push_back(Value{});
  SetOperand(num_operands() - 1, value);
}

void Node::RemoveOperand(int i) {
  for (int k = i; k + 1 < num_operands(); ++k) SetOperand(k, operands_[k + 1]);
  SetOperand(num_operands() - 1, Value{});
  operands_.pop_back();
}

void Node::SetResultName(int i, std::string name) {
  if (names_[i] == name) return;
  function_->ForgetName(names_[i]);
  names_[i] = function_->UniqueName(name);
}

bool Node::HasUses() const {
  return std::any_of(uses_.begin(), uses_.end(), [](const std::vector<Use>& u) { return !u.empty(); });
}

void Node::Set(absl::string_view name, Attribute value) {
  attributes_[std::string(name)] = std::move(value);
  rule_ = nullptr;
}

namespace {
template <typename T>
const T& Get(const Node& n, const Attributes& attributes, absl::string_view name) {
  auto it = attributes.find(name);
  CHECK(it != attributes.end()) << n.op_name() << " has no attribute " << name;
  const T* value = std::get_if<T>(&it->second);
  CHECK(value != nullptr) << n.op_name() << ": attribute " << name << " is of another kind";
  return *value;
}
}  // namespace

int64_t Node::Int(absl::string_view name) const { return Get<int64_t>(*this, attributes_, name); }
int64_t Node::IntOr(absl::string_view name, int64_t otherwise) const {
  return Has(name) ? Int(name) : otherwise;
}
double Node::Float(absl::string_view name) const { return Get<double>(*this, attributes_, name); }
double Node::FloatOr(absl::string_view name, double otherwise) const {
  return Has(name) ? Float(name) : otherwise;
}
bool Node::BoolOr(absl::string_view name, bool otherwise) const {
  return Has(name) ? Get<bool>(*this, attributes_, name) : otherwise;
}
const std::string& Node::String(absl::string_view name) const {
  return Get<std::string>(*this, attributes_, name);
}
std::string Node::StringOr(absl::string_view name, absl::string_view otherwise) const {
  return Has(name) ? String(name) : std::string(otherwise);
}
const std::vector<int64_t>& Node::Ints(absl::string_view name) const {
  return Get<std::vector<int64_t>>(*this, attributes_, name);
}
const std::vector<std::string>& Node::Strings(absl::string_view name) const {
  return Get<std::vector<std::string>>(*this, attributes_, name);
}
const AxisList& Node::axes() const { return Get<Axes>(*this, attributes_, "axes").list; }

absl::StatusOr<const ShardingRule*> Node::Rule() const {
  if (rule_ != nullptr) return rule_;
  RETURN_IF_ERROR(op_->declaration);
  std::string text;
  if (op_->rule_fn) {
    ASSIGN_OR_RETURN(text, op_->rule_fn(*this));
  } else if (op_->elementwise) {
    const int rank = operands_.empty() ? 0 : operands_[0].type().rank();
    std::string dims;
    for (int i = 0; i < rank; ++i) absl::StrAppend(&dims, i ? " " : "", "a", i);
    for (int i = 0; i < num_operands(); ++i) {
      absl::StrAppend(&text, i ? ", " : "", operands_[i].type().rank() == rank ? dims : "");
    }
    text += " -> ";
    const int results = std::max<int>(1, op_->result_names.size());
    for (int i = 0; i < results; ++i) absl::StrAppend(&text, i ? ", " : "", dims);
  } else {
    text = op_->rule_text;
  }
  ASSIGN_OR_RETURN(rule_, InternRule(text));
  return rule_;
}

// ------------------------------------------------------------------------------------------------------
// Function

namespace {
const OpDef& ArgOp() {
  static const OpDef& op = *new OpDef("arg");
  return op;
}
const OpDef& ReturnOp() {
  static const OpDef& op = *new OpDef("return");
  return op;
}
}  // namespace

namespace {
struct NamedKind {
  FunctionKind kind;
  absl::string_view name;
  bool whole, indexed;  // whether it occurs without and with an index
};
constexpr NamedKind kNamedKinds[] = {
    {FunctionKind::kStep, "step", true, false},
    {FunctionKind::kChunk, "chunk", false, true},
    {FunctionKind::kForward, "forward", false, true},
    {FunctionKind::kBackward, "backward", false, true},
    {FunctionKind::kInputGrad, "input_grad", false, true},
    {FunctionKind::kWeightGrad, "weight_grad", false, true},
    {FunctionKind::kUpdate, "update", true, true},
    {FunctionKind::kReport, "report", true, true},
};
}  // namespace

FunctionRole FunctionRole::FromName(absl::string_view name) {
  for (const NamedKind& named : kNamedKinds) {
    absl::string_view rest = name;
    if (!absl::ConsumePrefix(&rest, named.name)) continue;
    if (rest.empty()) return named.whole ? FunctionRole(named.kind) : FunctionRole();
    int index = -1;
    if (!named.indexed || !absl::SimpleAtoi(rest, &index) || index < 0) return FunctionRole();
    const FunctionRole role(named.kind, index);
    return role.Name() == name ? role : FunctionRole();  // "forward07" is another name
  }
  return FunctionRole();
}

std::string FunctionRole::Name() const {
  for (const NamedKind& named : kNamedKinds) {
    if (named.kind != kind) continue;
    return index < 0 ? std::string(named.name) : absl::StrCat(named.name, index);
  }
  return "";
}

Function::Function(Module* module, std::string name)
    : module_(module), name_(std::move(name)), role_(FunctionRole::FromName(name_)) {
  return_.reset(new Node);
  return_->op_ = &ReturnOp();
  return_->function_ = this;
  return_->id_ = next_id_++;
}

void Function::SetRole(FunctionRole role) {
  name_ = role.Name();
  role_ = FunctionRole::FromName(name_);
  CHECK(role_ == role && role.kind != FunctionKind::kOther)
      << "@" << name_ << " with the index " << role.index;
}

std::string Function::UniqueName(absl::string_view hint) {
  std::string base(hint.empty() ? "v" : hint);
  auto [it, fresh] = used_names_.emplace(base, 1);
  if (fresh) return base;
  for (;;) {
    std::string name = absl::StrCat(base, "_", it->second++);
    if (used_names_.emplace(name, 1).second) return name;
  }
}

Value Function::AddArg(const std::string& name, Type type, Binding binding, Attributes attributes) {
  std::unique_ptr<Node> n(new Node);
  n->op_ = &ArgOp();
  n->function_ = this;
  n->id_ = next_id_++;
  n->types_.push_back(std::move(type));
  n->names_.push_back(UniqueName(name));
  n->uses_.resize(1);
  n->attributes_ = std::move(attributes);
  n->binding = std::move(binding);
  n->is_arg_ = true;
  args_.push_back(n.get());
  owned_args_.push_back(std::move(n));
  return args_.back()->result();
}

void Function::EraseArg(Node* arg) {
  args_.erase(std::find(args_.begin(), args_.end(), arg));
  const auto owned =
      std::find_if(owned_args_.begin(), owned_args_.end(), [&](auto& p) { return p.get() == arg; });
  if (arg->HasUses()) {
    erased_in_use_.push_back(std::move(*owned));
  } else {
    ForgetName(arg->names_[0]);
  }
  owned_args_.erase(owned);
}

void Function::AddResult(Value value, Binding binding) {
  return_->AddOperand(value);
  result_bindings_.push_back(std::move(binding));
}

void Function::RemoveResult(int i) {
  return_->RemoveOperand(i);
  result_bindings_.erase(result_bindings_.begin() + i);
}

std::vector<Node*> Function::Nodes() const {
  std::vector<Node*> out;
  out.reserve(body_.size());
  for (const auto& n : body_) out.push_back(n.get());
  return out;
}

std::vector<Node*> Function::NodesOf(absl::string_view op) const {
  std::vector<Node*> out;
  for (const auto& n : body_) {
    if (n->Is(op)) out.push_back(n.get());
  }
  return out;
}

Node* Function::Insert(Node* before, const OpDef* op, std::vector<Value> operands, std::vector<Type> types,
                       Attributes attributes, std::vector<std::string> names) {
  std::unique_ptr<Node> n(new Node);
  Node* node = n.get();
  n->op_ = op;
  n->function_ = this;
  n->id_ = next_id_++;
  n->types_ = std::move(types);
  n->uses_.resize(n->types_.size());
  n->attributes_ = std::move(attributes);
  for (size_t i = 0; i < n->types_.size(); ++i) {
    std::string hint;
    if (i < names.size()) hint = names[i];
    if (hint.empty()) {
      hint = op->name.substr(op->name.find('.') + 1);
      if (n->types_.size() > 1 && i < op->result_names.size())
        absl::StrAppend(&hint, ".", op->result_names[i]);
    }
    n->names_.push_back(UniqueName(hint));
  }
  const bool at_end = before == nullptr || before == return_.get();
  auto position = body_.insert(at_end ? body_.end() : before->position_, std::move(n));
  node->position_ = position;
  for (Value v : operands) node->AddOperand(v);
  return node;
}

void Function::MoveBefore(Node* node, Node* before) {
  const bool at_end = before == nullptr || before == return_.get();
  body_.splice(at_end ? body_.end() : before->position_, body_, node->position_);
}

void Function::Erase(Node* node) {
  for (int i = 0; i < node->num_operands(); ++i) node->SetOperand(i, Value{});
  if (node->HasUses()) {
    erased_in_use_.push_back(std::move(*node->position_));
  } else {
    for (const std::string& name : node->names_) ForgetName(name);
  }
  body_.erase(node->position_);
}

void Function::ReplaceAllUses(Value from, Value to) {
  if (from == to) return;
  const std::vector<Use> uses = from.node->uses(from.index);
  for (const Use& u : uses) u.user->SetOperand(u.operand, to);
}

bool Function::ComesBefore(const Node* a, const Node* b) const {
  if (a == b) return false;
  if (a->is_arg_ || b == return_.get()) return !(b->is_arg_);
  if (b->is_arg_ || a == return_.get()) return false;
  for (const auto& n : body_) {
    if (n.get() == a) return true;
    if (n.get() == b) return false;
  }
  return false;
}

// --------------------------------------------------------------------------------------------------------
// Module

Function* Module::AddFunction(std::string name) {
  CHECK(Find(name) == nullptr) << "function @" << name << " exists";
  functions_.push_back(std::make_unique<Function>(this, std::move(name)));
  return functions_.back().get();
}

Function* Module::AddFunction(FunctionRole role) {
  Function* function = AddFunction(role.Name());
  CHECK(function->role() == role) << "@" << function->name() << " with the index " << role.index;
  return function;
}

Function* Module::Find(absl::string_view name) const {
  for (const auto& f : functions_) {
    if (f->name() == name) return f.get();
  }
  return nullptr;
}

Function* Module::Find(FunctionRole role) const {
  CHECK(role.kind != FunctionKind::kOther);
  for (const auto& f : functions_) {
    if (f->role() == role) return f.get();
  }
  return nullptr;
}

void Module::RemoveFunction(absl::string_view name) {
  functions_.erase(
      std::remove_if(functions_.begin(), functions_.end(), [&](auto& f) { return f->name() == name; }),
      functions_.end());
}

State* Module::AddState(State state) {
  CHECK(state_index_.count(state.name) == 0) << "state @" << state.name << " exists";
  states_.push_back(std::make_unique<State>(std::move(state)));
  state_index_[states_.back()->name] = states_.back().get();
  return states_.back().get();
}

State* Module::FindState(absl::string_view name) const {
  auto it = state_index_.find(name);
  return it == state_index_.end() ? nullptr : it->second;
}

void Module::RemoveState(absl::string_view name) {
  state_index_.erase(name);
  states_.erase(std::remove_if(states_.begin(), states_.end(), [&](auto& s) { return s->name == name; }),
                states_.end());
}

Function* CloneFunction(const Function& f, Module* into, std::string name) {
  Function* g = into->AddFunction(std::move(name));
  std::unordered_map<const Node*, Node*> map;
  for (const Node* a : f.args()) {
    map[a] = g->AddArg(a->result_name(), a->type(), a->binding, a->attributes()).node;
    map[a]->scope = a->scope;
    map[a]->provenance = a->provenance;
  }
  for (const auto& n : f.body()) {
    std::vector<Value> operands;
    for (Value v : n->operands()) operands.push_back(Value{map.at(v.node), v.index});
    std::vector<Type> types;
    std::vector<std::string> names;
    for (int i = 0; i < n->num_results(); ++i) {
      types.push_back(n->type(i));
      names.push_back(n->result_name(i));
    }
    Node* c = g->Insert(nullptr, &n->op(), std::move(operands), std::move(types), n->attributes(),
                        std::move(names));
    c->phase = n->phase;
    c->queue = n->queue;
    c->scope = n->scope;
    c->provenance = n->provenance;
    c->assignment = n->assignment;
    map[n.get()] = c;
  }
  for (int i = 0; i < f.num_results(); ++i) {
    g->AddResult(Value{map.at(f.result(i).node), f.result(i).index}, f.result_binding(i));
  }
  return g;
}

std::unique_ptr<Module> CloneModule(const Module& m) {
  auto out = std::make_unique<Module>(m.name());
  out->mesh() = m.mesh();
  out->attributes() = m.attributes();
  for (const auto& s : m.states()) out->AddState(*s);
  for (const auto& f : m.functions()) CloneFunction(*f, out.get(), f->name());
  return out;
}

}  // namespace moe
