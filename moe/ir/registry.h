// The op registry: everything the compiler knows about an op, declared once, in one block, in a fixed order.
//
//   registry.Add(OpDef("moe.combine")
//       .Doc("Weighted sum of expert outputs back into token order.")
//       .Operands({"expert_output", "probability", "expert", "slot"})
//       .Results({"y"})
//       .Attr("dropless", AttrKind::kBool)
//       .Rule("e b c p! h, b c t! k!, b c t! k!, b c t! k! -> b c t! h")
//       .LinearIn({0, 1})
//       .Gradient(CombineGradient)
//       .FlopsPerElement(2)
//       .Effects(kPure));
//
// Type inference follows from the rule: result extents are those of the factors, which come from the
// operands, or for factors in results only from the attribute named by FactorFrom("e", "experts"). Result
// dtypes: see ResultDTypes. Registration is explicit (RegisterOps in ops/ops.h); a registry is read-only
// afterwards and may be shared by threads.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "moe/ir/graph.h"

namespace moe {

class Builder;

enum class AttrKind { kBool, kInt, kFloat, kString, kInts, kStrings, kAxes };
absl::string_view AttrKindName(AttrKind kind);

enum Effect : uint32_t {
  kPure = 0,
  kRandom = 1,      // counter-based RNG keyed by seed, step, op and global element index
  kDecision = 2,    // routing: must be saved, may not be recomputed
  kStateful = 4,    // updates state through aliasing
  kCollective = 8,  // talks to other ranks: order matters
};

struct AttrDef {
  std::string name;
  AttrKind kind;
  bool required = true;
};

// d(results) -> d(operands). `dys` has one value per result, null where no gradient arrives. A gradient
// function appends ops through `b` and sets dxs[i] for every operand that has a gradient (others stay null).
using GradientFn =
    std::function<absl::Status(Node* n, absl::Span<const Value> dys, Builder& b, std::vector<Value>* dxs)>;
// Number of floating-point operations at the given factor extents (one per factor of the rule).
using FlopsFn =
    std::function<double(const Node& n, const ShardingRule& rule, absl::Span<const double> extents)>;
using RuleFn = std::function<absl::StatusOr<std::string>(const Node& n)>;
using InferFn = std::function<absl::StatusOr<std::vector<Type>>(const Node& n)>;
using VerifyFn = std::function<absl::Status(const Node& n)>;

enum class Linearity { kNone, kSeparately, kJointly };

// In which float type an op computes under mixed precision (the pass `mixed-precision`).
enum class Precision {
  kWide,     // in that of the parameters: statistics, routing, losses, the update
  kNarrow,   // in bf16 or f16 wherever it may: the bulk of the work
  kFollows,  // as its operands
};

struct OpDef {
  explicit OpDef(std::string name) : name(std::move(name)) {}

  // ---- declaration, in this order
  OpDef& Doc(std::string text) {
    doc = std::move(text);
    return *this;
  }
  OpDef& Operands(std::vector<std::string> names) {
    operand_names = std::move(names);
    return *this;
  }
  OpDef& Variadic() {
    variadic = true;
    return *this;
  }  // any number (>= 1) of operands
  OpDef& Results(std::vector<std::string> names) {
    result_names = std::move(names);
    return *this;
  }
  // As many results as the rule says, which follows from the operands: result_names repeat. Such nodes are
  // created with Builder::CreateTyped.
  OpDef& VariadicResults() {
    variadic_results = true;
    return *this;
  }
  OpDef& Attr(std::string n, AttrKind k, bool required = true) {
    attrs.push_back({std::move(n), k, required});
    return *this;
  }
  // The extent of a factor that is in results only.
  OpDef& FactorFrom(std::string factor, std::string attr) {
    factor_from[factor] = attr;
    return *this;
  }
  // One entry per result: "=0" (as operand 0), "^0" (as operand 0, but f32 at least), "@dtype" (what the
  // attribute of that name says, otherwise as operand 0) or a dtype name. Default: all as operand 0.
  OpDef& ResultDTypes(std::vector<std::string> d) {
    result_dtypes = std::move(d);
    return *this;
  }
  OpDef& Infer(InferFn fn) {
    infer = std::move(fn);
    return *this;
  }  // replaces inference by rule
  OpDef& Verify(VerifyFn fn) {
    verify = std::move(fn);
    return *this;
  }  // beyond arity, attributes and inference
  OpDef& Rule(std::string text) {
    rule_text = std::move(text);
    return *this;
  }
  OpDef& RuleFrom(RuleFn fn) {
    rule_fn = std::move(fn);
    return *this;
  }
  OpDef& Elementwise() {
    elementwise = true;
    return *this;
  }  // rule from the rank of operand 0; scalars broadcast
  OpDef& LinearIn(std::vector<int> o) {
    linearity = Linearity::kSeparately;
    linear_operands = std::move(o);
    return *this;
  }
  OpDef& LinearInAll() {
    linearity = Linearity::kSeparately;
    linear_all = true;
    return *this;
  }
  OpDef& JointlyLinear() {
    linearity = Linearity::kJointly;
    return *this;
  }
  OpDef& ReducesWith(Reduction r) {
    reduction = r;
    return *this;
  }  // kind of the partial a sharded reduction leaves
  OpDef& Ragged(std::string factor) {
    ragged_factor = std::move(factor);
    return *this;
  }  // ragged if attr "dropless"
  OpDef& Exchanges(std::string factor) {
    exchanged_factor = std::move(factor);
    return *this;
  }  // sharded whole or not at all; sharded, the op is not a kernel's work but an exchange, which `shard` makes
     // of it
  OpDef& Cheap() {
    cheap = true;
    return *this;
  }  // linear and cheap: may be placed anew instead of converting its result
  // The factor that tokens are routed to. Sharding it over an axis of the tokens wants all of them on every
  // rank of it (gathered); left whole there, the value that has it is exchanged instead. A strategy may say
  // which.
  OpDef& Routes(std::string factor) {
    routed_factor = std::move(factor);
    return *this;
  }
  OpDef& Gradient(GradientFn fn) {
    gradient = std::move(fn);
    return *this;
  }
  OpDef& NoGradient() {
    no_gradient = true;
    return *this;
  }  // explicitly none (for any operand)
  OpDef& NotDifferentiable(std::vector<int> r) {
    nodiff_results = std::move(r);
    return *this;
  }  // results without gradient
  // Floating-point operations per element of the largest operand or result; a copy counts as one.
  OpDef& FlopsPerElement(double n) {
    flops_per_element = n;
    return *this;
  }
  OpDef& Flops(FlopsFn fn) {
    flops = std::move(fn);
    return *this;
  }  // replaces these: products, whose factors are more than any operand or result has
  OpDef& Gathers(int operand) {
    gathered_operand = operand;
    return *this;
  }  // reads rows of this operand by index: no more of it than the result has
  OpDef& ComputesIn(moe::Precision p) {
    precision = p;
    return *this;
  }  // default: kWide
  // Operands that are f32 at least when the others are narrower: statistics, probabilities, norms' weights.
  OpDef& WideOperands(std::vector<int> o) {
    wide_operands = std::move(o);
    return *this;
  }
  // Operands that may be any float, whatever the others are: gradients beside masters.
  OpDef& AnyFloat(bool (*operand)(int)) {
    any_float = operand;
    return *this;
  }
  OpDef& Effects(uint32_t e) {
    effects = e;
    return *this;
  }
  // result -> operand whose storage it takes over (in-place update); both must have the same type. Entries of
  // operands or results that a node does not have say nothing of it.
  OpDef& InPlace(std::map<int, int> m) {
    in_place = std::move(m);
    return *this;
  }

  bool Has(Effect e) const { return (effects & e) != 0; }

  // ---- data
  std::string name, doc;
  std::vector<std::string> operand_names, result_names;
  bool variadic = false, variadic_results = false;
  std::vector<AttrDef> attrs;
  std::map<std::string, std::string> factor_from;
  std::vector<std::string> result_dtypes;
  InferFn infer;
  VerifyFn verify;
  std::string rule_text;
  RuleFn rule_fn;
  bool elementwise = false;
  Linearity linearity = Linearity::kNone;
  std::vector<int> linear_operands;
  bool linear_all = false;
  Reduction reduction = Reduction::kSum;
  std::string ragged_factor, exchanged_factor;
  bool cheap = false;
  std::string routed_factor;
  GradientFn gradient;
  bool no_gradient = false;
  std::vector<int> nodiff_results;
  double flops_per_element = 1;
  FlopsFn flops;
  int gathered_operand = -1;
  moe::Precision precision = moe::Precision::kWide;
  std::vector<int> wide_operands;
  bool (*any_float)(int operand) = nullptr;
  uint32_t effects = kPure;
  std::map<int, int> in_place;
  std::vector<bool> index_operands;  // by operand_names; set on registration

  bool IsLinearIn(int operand) const;              // separately linear in this operand
  bool IsWide(int operand) const;                  // see WideOperands
  bool IsIndex(int operand) const;                 // whether it holds indices, by its name
  int FindResult(absl::string_view result) const;  // index of the result of that name, or -1
  const AttrDef* FindAttr(absl::string_view name) const;
};

// The operand whose storage a result of the node takes over, or -1.
int InPlaceOperand(const Node& node, int result);

class OpRegistry {
 public:
  OpDef& Add(OpDef def);                            // CHECK-fails on a duplicate name
  const OpDef* Find(absl::string_view name) const;  // null if unknown
  std::vector<const OpDef*> All() const;            // sorted by name
  // Nearest known name, for error messages.
  std::string Nearest(absl::string_view name) const;

 private:
  std::map<std::string, std::unique_ptr<OpDef>> ops_;
};

// The registry of all built-in ops; built once, thread-safe.
const OpRegistry& Ops();

// Extents of the factors of a node's rule, from operand types (global) and FactorFrom attributes. Error:
// extents that contradict each other, by operand and dim.
absl::StatusOr<std::vector<int64_t>> FactorExtents(const Node& n);
// Result types by inference (global dims, replicated placement). Used by Builder and the verifier.
absl::StatusOr<std::vector<Type>> InferTypes(const Node& n);
// Result placements that follow from a factor assignment and the operands' partials; also the operands'
// required placements. Error: a fixed factor or an inexhausted major is sharded, or an extent is not
// divisible.
struct NodePlacements {
  std::vector<Placement> operands, results;
};
// passed: per axis, which operand's partial passes through (-1: all, for jointly linear ops).
struct PassedPartial {
  AxisId axis;
  int operand;  // -1: all
};
absl::StatusOr<NodePlacements> PlaceNode(const Node& n, const ShardingRule& rule,
                                         absl::Span<const int64_t> extents,
                                         const FactorAssignment& assignment,
                                         absl::Span<const PassedPartial> passed, const Mesh& mesh);

}  // namespace moe
