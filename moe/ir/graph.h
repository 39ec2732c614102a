// The graph: Module = mesh + state + functions; Function owns its Nodes; Value = {node, result index}.
//
// There is one Node class; what an op means is in the registry (registry.h). Arguments of a function are
// nodes of the op "arg", its results are the operands of its single "return" node, so uses are uniform.
// Iteration is in list order, which is topological. Nothing here is thread-safe; a Module is built and
// rewritten by one thread.
//
//   Builder b(&function);
//   ASSIGN_OR_RETURN(Value y, b.Create("math.add", {x, x}));
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/ir/binding.h"
#include "moe/ir/rule.h"
#include "moe/ir/types.h"

namespace moe {

class Function;
class Module;
class Node;
struct OpDef;

// An attribute. Axes are a kind of their own, so that they print as names: {axes = [tp]}.
struct Axes {
  Axes() = default;
  Axes(AxisList list) : list(std::move(list)) {}  // implicit: {{"axes", node->axes()}}
  AxisList list;
  friend bool operator==(const Axes& a, const Axes& b) { return a.list == b.list; }
};
using Attribute =
    std::variant<bool, int64_t, double, std::string, std::vector<int64_t>, std::vector<std::string>, Axes>;
using Attributes = std::map<std::string, Attribute, std::less<>>;  // looked up without making a string

struct Value {
  Node* node = nullptr;
  int index = 0;

  explicit operator bool() const { return node != nullptr; }
  const Type& type() const;
  const std::string& name() const;  // without '%'; unique in its function
  bool HasOneUse() const;
  friend bool operator==(const Value& a, const Value& b) { return a.node == b.node && a.index == b.index; }
  friend bool operator!=(const Value& a, const Value& b) { return !(a == b); }
  friend bool operator<(const Value& a, const Value& b);  // by node id: deterministic
  template <typename H>
  friend H AbslHashValue(H h, const Value& v) {
    return H::combine(std::move(h), v.node, v.index);
  }
};

struct Use {
  Node* user = nullptr;
  int operand = 0;
};

// Where a node belongs in time. Forward and backward of one chunk stand in one function until `split-phases`.
enum class Phase : uint8_t { kForward, kBackward, kUpdate };
absl::string_view PhaseName(Phase phase);

// Which queue runs a node. Transfers of one kind never wait behind those of another.
enum class Queue : uint8_t { kCompute, kComm, kCopy };

struct Provenance {
  std::string pass;    // the pass that created the node; empty: the model
  std::string reason;  // "batch@dp -> experts@ep, for %d"
  friend bool operator==(const Provenance& a, const Provenance& b) {
    return a.pass == b.pass && a.reason == b.reason;
  }
};

class Node {
 public:
  const OpDef& op() const { return *op_; }
  const std::string& op_name() const;
  bool Is(absl::string_view op) const { return op_name() == op; }
  int64_t id() const { return id_; }  // unique in its function, increasing in creation order
  Function* function() const { return function_; }

  int num_operands() const { return static_cast<int>(operands_.size()); }
  Value operand(int i) const { return operands_[i]; }
  const std::vector<Value>& operands() const { return operands_; }
  void SetOperand(int i, Value value);
  void AddOperand(Value value);  // for "return"
  void RemoveOperand(int i);     // for "return"

  int num_results() const { return static_cast<int>(types_.size()); }
  Value result(int i = 0) { return Value{this, i}; }
  const Type& type(int i = 0) const { return types_[i]; }
  void SetType(int i, Type type) { types_[i] = std::move(type); }
  const std::string& result_name(int i = 0) const { return names_[i]; }
  void SetResultName(int i, std::string name);  // made unique in the function
  const std::vector<Use>& uses(int i = 0) const { return uses_[i]; }
  bool HasUses() const;

  const Attributes& attributes() const { return attributes_; }
  bool Has(absl::string_view name) const { return attributes_.find(name) != attributes_.end(); }
  void Set(absl::string_view name, Attribute value);  // forgets the cached rule
  // Typed access; CHECK-fails when the attribute is missing or of another kind (the verifier has seen to it).
  int64_t Int(absl::string_view name) const;
  int64_t IntOr(absl::string_view name, int64_t otherwise) const;
  double Float(absl::string_view name) const;
  double FloatOr(absl::string_view name, double otherwise) const;
  bool BoolOr(absl::string_view name, bool otherwise) const;
  const std::string& String(absl::string_view name) const;
  std::string StringOr(absl::string_view name, absl::string_view otherwise) const;
  const std::vector<int64_t>& Ints(absl::string_view name) const;
  const std::vector<std::string>& Strings(absl::string_view name) const;
  const AxisList& axes() const;  // the attribute "axes"

  // The sharding rule of this node (from the registry; may depend on attributes and operand ranks). Cached.
  absl::StatusOr<const ShardingRule*> Rule() const;

  Phase phase = Phase::kForward;
  Queue queue = Queue::kCompute;
  std::string scope;  // "layers.2.moe": which part of the model
  Binding binding;    // of arguments: what they read
  Provenance provenance;
  FactorAssignment assignment;  // empty until placed; then one entry per factor of Rule()

 private:
  friend class Function;
  Node() = default;
  const OpDef* op_ = nullptr;
  Function* function_ = nullptr;
  int64_t id_ = 0;
  std::vector<Value> operands_;
  std::vector<Type> types_;
  std::vector<std::string> names_;
  std::vector<std::vector<Use>> uses_;
  Attributes attributes_;
  mutable const ShardingRule* rule_ = nullptr;
  std::list<std::unique_ptr<Node>>::iterator position_;
  bool is_arg_ = false;
};

// What a function is for; see program.h for how the roles follow from one another.
enum class FunctionKind : uint8_t {
  kStep,        // @step: one microbatch of the whole model
  kChunk,       // @chunk<c>: forward and backward of chunk c, in two phases
  kForward,     // @forward<c>
  kBackward,    // @backward<c>
  kInputGrad,   // @input_grad<c>: with @weight_grad<c>, what @backward<c> does otherwise
  kWeightGrad,  // @weight_grad<c>
  kUpdate,      // @update, after staging @update<stage>
  kReport,      // @report, after staging @report<stage>
  kOther,       // any other name
};

// The role of a function. A role has one text, which is the name of its function: @step, @chunk2, @forward0,
// @update, @update1. So the text form and the Plan show roles by names alone, and nothing but this struct
// reads names.
struct FunctionRole {
  FunctionRole() = default;
  FunctionRole(FunctionKind kind, int index = -1) : kind(kind), index(index) {}
  static FunctionRole FromName(absl::string_view name);
  std::string Name() const;  // empty for kOther

  // Whether a stage runs the function once per microbatch; its index is then the chunk.
  bool IsOfMicrobatch() const { return kind >= FunctionKind::kForward && kind <= FunctionKind::kWeightGrad; }

  FunctionKind kind = FunctionKind::kOther;
  int index = -1;  // the chunk; of kUpdate and kReport the stage; -1 where there is none
  friend bool operator==(const FunctionRole&, const FunctionRole&) = default;
  friend auto operator<=>(const FunctionRole&, const FunctionRole&) = default;
};

class Function {
 public:
  Function(Module* module, std::string name);
  Function(const Function&) = delete;

  Module* module() const { return module_; }
  const std::string& name() const { return name_; }
  const FunctionRole& role() const { return role_; }
  void SetRole(FunctionRole role);  // not kOther; renames the function

  // Arguments: nodes of op "arg" with one result. Their attributes are hints, as any op may carry.
  Value AddArg(const std::string& name, Type type, Binding binding = {}, Attributes attributes = {});
  const std::vector<Node*>& args() const { return args_; }
  void EraseArg(Node* arg);  // as Erase
  // Results. Each has a binding, printed after `return %a`.
  int num_results() const { return return_->num_operands(); }
  Value result(int i) const { return return_->operand(i); }
  const Binding& result_binding(int i) const { return result_bindings_[i]; }
  void AddResult(Value value, Binding binding = {});
  void SetResult(int i, Value value) { return_->SetOperand(i, value); }
  void RemoveResult(int i);
  Node* return_node() const { return return_.get(); }

  // Body, in topological order, without arguments and return. The snapshots may be rewritten while iterated.
  std::vector<Node*> Nodes() const;
  std::vector<Node*> NodesOf(absl::string_view op) const;
  int64_t num_nodes() const { return static_cast<int64_t>(body_.size()); }
  const std::list<std::unique_ptr<Node>>& body() const { return body_; }

  // Low-level creation: no inference (use Builder). Inserted before `before`, or at the end when null.
  Node* Insert(Node* before, const OpDef* op, std::vector<Value> operands, std::vector<Type> types,
               Attributes attributes, std::vector<std::string> names = {});
  void MoveBefore(Node* node, Node* before);  // `before` null: to the end
  // The node must have no uses. If it has any, that is an error of the pass that erases it, which the
  // verifier reports, naming every user; until then the node is out of the body and its values stay readable.
  void Erase(Node* node);
  void ReplaceAllUses(Value from, Value to);  // also in the return
  // Unique name made from `hint`.
  std::string UniqueName(absl::string_view hint);
  // Position of a node in the list; recomputed on demand after changes. args are -1, return is num_nodes().
  bool ComesBefore(const Node* a, const Node* b) const;

 private:
  friend class Node;
  void ForgetName(const std::string& name) { used_names_.erase(name); }
  Module* module_;
  std::string name_;
  FunctionRole role_;
  std::list<std::unique_ptr<Node>> body_;
  std::vector<std::unique_ptr<Node>> owned_args_;
  std::vector<std::unique_ptr<Node>> erased_in_use_;
  std::vector<Node*> args_;
  std::unique_ptr<Node> return_;
  std::vector<Binding> result_bindings_;
  int64_t next_id_ = 0;
  absl::flat_hash_map<std::string, int64_t> used_names_;
};

// A tensor that outlives a step: a parameter, an optimizer moment, an accumulator, a counter.
struct State {
  std::string name;       // "layers.0.wq", "adam.m.layers.0.wq", "grad.layers.0.wq"
  Type type;              // storage placement
  Attributes attributes;  // see state.h for the keys
};

class Module {
 public:
  explicit Module(std::string name = "module") : name_(std::move(name)) {}
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  const std::string& name() const { return name_; }
  void SetName(std::string name) { name_ = std::move(name); }
  Mesh& mesh() { return mesh_; }
  const Mesh& mesh() const { return mesh_; }
  Attributes& attributes() { return attributes_; }
  const Attributes& attributes() const { return attributes_; }

  // The name must be new.
  Function* AddFunction(std::string name);
  Function* AddFunction(FunctionRole role);
  // Null if there is none.
  Function* Find(absl::string_view name) const;
  Function* Find(FunctionRole role) const;  // not kOther
  const std::vector<std::unique_ptr<Function>>& functions() const { return functions_; }
  std::vector<std::unique_ptr<Function>>& mutable_functions() { return functions_; }
  void RemoveFunction(absl::string_view name);

  State* AddState(State state);                    // name must be new
  State* FindState(absl::string_view name) const;  // null if there is none
  const std::vector<std::unique_ptr<State>>& states() const { return states_; }
  void RemoveState(absl::string_view name);

 private:
  std::string name_;
  Mesh mesh_;
  Attributes attributes_;
  std::vector<std::unique_ptr<Function>> functions_;
  std::vector<std::unique_ptr<State>> states_;
  absl::flat_hash_map<std::string, State*> state_index_;
};

// Deep copy (ids and names kept).
std::unique_ptr<Module> CloneModule(const Module& module);
// Copies the body of a function into another module's (or the same module's) new function.
Function* CloneFunction(const Function& function, Module* into, std::string name);

}  // namespace moe
