// The op registry: everything the compiler knows about an op, declared once, in one block, in a fixed order.
//
//   registry.Add(OpDef("moe.combine")
//       .Doc("Weighted sum of expert outputs back into token order.")
//       .Operands({"expert_output", WideOperand("probability"), IndexOperand("expert"), IndexOperand("slot")})
//       .Results({"y"})
//       .Attr("dropless", AttrKind::kBool)
//       .Rule("e b c p! h, b c t! k!, b c t! k!, b c t! k! -> b c t! h")
//       .LinearIn({0, 1})
//       .Gradient(CombineGradient)
//       .FlopsPerElement(2)
//       .Effects(kPure));
//
// The order is that of OpPart; a test holds every block to it. Type inference follows from the rule: result
// extents are those of the factors, which come from the operands, or for factors in results only from the
// attribute named by FactorFrom("e", "experts"); result dtypes come from ResultDTypes. Registration is
// explicit (the functions of ops/ops.h); a registry is read-only afterwards and may be shared by threads.
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

// In the order of the alternatives of Attribute.
enum class AttrKind { kBool, kInt, kFloat, kString, kInts, kStrings, kAxes };
absl::string_view AttrKindName(AttrKind kind);
inline AttrKind AttrKindOf(const Attribute& value) { return static_cast<AttrKind>(value.index()); }

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

// What dtype an operand may have. Kernels are chosen by one dtype, so the common operands of a node agree.
enum class OperandDType : uint8_t {
  kCommon,  // that of the node's other common operands
  kWide,    // f32 at least where the common operands are narrower: statistics, probabilities, norms' weights
  kIndex,   // s32: ids, experts, slots, positions
  kAnyFloat,  // any float, whatever the others are: gradients beside masters
};

// An operand as an op declares it: "x", WideOperand("weight"), IndexOperand("ids").
struct OperandDef {
  OperandDef(std::string name, OperandDType dtype = OperandDType::kCommon)
      : name(std::move(name)), dtype(dtype) {}
  OperandDef(const char* name) : name(name) {}
  std::string name;
  OperandDType dtype = OperandDType::kCommon;
};
inline OperandDef WideOperand(std::string name) { return {std::move(name), OperandDType::kWide}; }
inline OperandDef IndexOperand(std::string name) { return {std::move(name), OperandDType::kIndex}; }
inline OperandDef AnyFloatOperand(std::string name) { return {std::move(name), OperandDType::kAnyFloat}; }

// The dtype of a result: SameAs(0), Wider(0), DType::kS32, FromAttribute("dtype").
struct DTypeRule {
  enum Kind : uint8_t { kSameAs, kWider, kFixed, kAttribute };
  DTypeRule(Kind kind, int operand, std::string attribute = "")
      : kind(kind), operand(operand), attribute(std::move(attribute)) {}
  DTypeRule(DType fixed) : kind(kFixed), fixed(fixed) {}
  Kind kind;
  int operand = 0;
  DType fixed = DType::kF32;
  std::string attribute;
};
// As the operand.
inline DTypeRule SameAs(int operand) { return {DTypeRule::kSameAs, operand}; }
// As the operand, but f32 at least.
inline DTypeRule Wider(int operand) { return {DTypeRule::kWider, operand}; }
// What the string attribute of that name says; without the attribute, as operand 0.
inline DTypeRule FromAttribute(std::string name) { return {DTypeRule::kAttribute, 0, std::move(name)}; }

// The parts of a declaration, in the order in which every op's block has them.
enum class OpPart : uint8_t {
  kDoc,
  kOperands,
  kAttributes,
  kInfer,
  kVerify,
  kShardingRule,
  kGradient,
  kCost,
  kEffects
};
absl::string_view OpPartName(OpPart part);

struct OpDef {
  explicit OpDef(std::string name) : name(std::move(name)) {}

  // ---- doc

  OpDef& Doc(std::string text) {
    doc = std::move(text);
    return Declare(OpPart::kDoc);
  }

  // ---- operands and results

  OpDef& Operands(const std::vector<OperandDef>& operands) {
    for (const OperandDef& o : operands) operand_names.push_back(o.name), operand_dtypes.push_back(o.dtype);
    return Declare(OpPart::kOperands);
  }
  // One or more operands, all alike: the declared one stands for each.
  OpDef& Variadic() {
    variadic = true;
    return Declare(OpPart::kOperands);
  }
  // The declared operands, and after them these, as often as they come.
  OpDef& Repeated(const std::vector<OperandDef>& operands) {
    for (const OperandDef& o : operands) repeated_dtypes.push_back(o.dtype);
    return Variadic();
  }
  OpDef& Results(std::vector<std::string> names) {
    result_names = std::move(names);
    return Declare(OpPart::kOperands);
  }
  // As many results as the rule says, which follows from the operands: result_names repeat. Such nodes are
  // created with Builder::CreateTyped.
  OpDef& VariadicResults() {
    variadic_results = true;
    return Declare(OpPart::kOperands);
  }

  // ---- attributes

  OpDef& Attr(std::string n, AttrKind k, bool required = true) {
    attrs.push_back({std::move(n), k, required});
    return Declare(OpPart::kAttributes);
  }

  // ---- infer

  // One entry per result. Results without one have the dtype of operand 0.
  OpDef& ResultDTypes(std::vector<DTypeRule> rules) {
    result_dtypes = std::move(rules);
    return Declare(OpPart::kInfer);
  }
  // Replaces inference by rule.
  OpDef& Infer(InferFn fn) {
    infer = std::move(fn);
    return Declare(OpPart::kInfer);
  }
  // Under mixed precision. Without it, kWide.
  OpDef& ComputesIn(moe::Precision p) {
    precision = p;
    return Declare(OpPart::kInfer);
  }

  // ---- verify

  // What is checked of a node beyond arity, attributes and inference.
  OpDef& Verify(VerifyFn fn) {
    verify = std::move(fn);
    return Declare(OpPart::kVerify);
  }

  // ---- sharding rule

  OpDef& Rule(std::string text) {
    rule_text = std::move(text);
    return Declare(OpPart::kShardingRule);
  }
  OpDef& RuleFrom(RuleFn fn) {
    rule_fn = std::move(fn);
    return Declare(OpPart::kShardingRule);
  }
  // The rule follows from the rank of operand 0; scalars broadcast.
  OpDef& Elementwise() {
    elementwise = true;
    return Declare(OpPart::kShardingRule);
  }
  // The attribute that gives the extent of a factor which only results have.
  OpDef& FactorFrom(std::string factor, std::string attr) {
    factor_from[factor] = attr;
    return Declare(OpPart::kShardingRule);
  }
  OpDef& LinearIn(std::vector<int> o) {
    linearity = Linearity::kSeparately;
    linear_operands = std::move(o);
    return Declare(OpPart::kShardingRule);
  }
  OpDef& LinearInAll() {
    linearity = Linearity::kSeparately;
    linear_all = true;
    return Declare(OpPart::kShardingRule);
  }
  OpDef& JointlyLinear() {
    linearity = Linearity::kJointly;
    return Declare(OpPart::kShardingRule);
  }
  // The kind of the partial that a sharded reduction leaves.
  OpDef& ReducesWith(Reduction r) {
    reduction = r;
    return Declare(OpPart::kShardingRule);
  }
  // The factor is ragged in nodes with dropless = true.
  OpDef& Ragged(std::string factor) {
    ragged_factor = std::move(factor);
    return Declare(OpPart::kShardingRule);
  }
  // The factor is sharded whole or not at all. Sharded, the node is not a kernel's work but an exchange,
  // which `shard` makes of it.
  OpDef& Exchanges(std::string factor) {
    exchanged_factor = std::move(factor);
    return Declare(OpPart::kShardingRule);
  }
  // Linear and cheap: the node may be placed anew instead of converting its result.
  OpDef& Cheap() {
    cheap = true;
    return Declare(OpPart::kShardingRule);
  }
  // The factor that tokens are routed to. Sharding it over an axis of the tokens needs all of them on every
  // rank of that axis (gathered); left whole there, the value that has the factor is exchanged instead. A
  // strategy may say which.
  OpDef& Routes(std::string factor) {
    routed_factor = std::move(factor);
    return Declare(OpPart::kShardingRule);
  }

  // ---- gradient

  // Results that have no gradient.
  OpDef& NotDifferentiable(std::vector<int> r) {
    nodiff_results = std::move(r);
    return Declare(OpPart::kGradient);
  }
  OpDef& Gradient(GradientFn fn) {
    gradient = std::move(fn);
    return Declare(OpPart::kGradient);
  }
  // Explicitly none, for any operand.
  OpDef& NoGradient() {
    no_gradient = true;
    return Declare(OpPart::kGradient);
  }

  // ---- cost

  // Floating-point operations per element of the largest operand or result; a copy counts as one.
  OpDef& FlopsPerElement(double n) {
    flops_per_element = n;
    return Declare(OpPart::kCost);
  }
  // Replaces these: for products, whose factors are more than any operand or result has.
  OpDef& Flops(FlopsFn fn) {
    flops = std::move(fn);
    return Declare(OpPart::kCost);
  }
  // The node reads rows of this operand by index: no more of it than the result has.
  OpDef& Gathers(int operand) {
    gathered_operand = operand;
    return Declare(OpPart::kCost);
  }

  // ---- effects

  OpDef& Effects(uint32_t e) {
    effects = e;
    return Declare(OpPart::kEffects);
  }
  // result -> operand whose storage it takes over (in-place update); both must have the same type. Entries of
  // operands or results that a node does not have are ignored.
  OpDef& InPlace(std::map<int, int> m) {
    in_place = std::move(m);
    return Declare(OpPart::kEffects);
  }

  bool Has(Effect e) const { return (effects & e) != 0; }

  // ---- data
  std::string name, doc;
  std::vector<std::string> operand_names, result_names;
  std::vector<OperandDType> operand_dtypes, repeated_dtypes;
  bool variadic = false, variadic_results = false;
  std::vector<AttrDef> attrs;
  std::vector<DTypeRule> result_dtypes;
  InferFn infer;
  moe::Precision precision = moe::Precision::kWide;
  VerifyFn verify;
  std::string rule_text;
  RuleFn rule_fn;
  bool elementwise = false;
  std::map<std::string, std::string> factor_from;
  Linearity linearity = Linearity::kNone;
  std::vector<int> linear_operands;
  bool linear_all = false;
  Reduction reduction = Reduction::kSum;
  std::string ragged_factor, exchanged_factor;
  bool cheap = false;
  std::string routed_factor;
  std::vector<int> nodiff_results;
  GradientFn gradient;
  bool no_gradient = false;
  double flops_per_element = 1;
  FlopsFn flops;
  int gathered_operand = -1;
  uint32_t effects = kPure;
  std::map<int, int> in_place;
  std::vector<OpPart> declared;  // the parts in the order in which they were declared
  absl::Status declaration;      // CheckDeclaration's, set on registration

  bool IsLinearIn(int operand) const;  // separately linear in this operand
  OperandDType DTypeOf(int operand) const;
  bool IsWide(int operand) const { return DTypeOf(operand) == OperandDType::kWide; }
  int FindResult(absl::string_view result) const;  // index of the result of that name, or -1
  const AttrDef* FindAttr(absl::string_view name) const;
  // Whether a node may have these attributes: all of them known and of the right kind, none missing.
  absl::Status CheckAttributes(const Attributes& attributes) const;
  // Whether what was declared fits together: a rule that can be read, with a term for every operand and
  // result, and factors, operands and attributes that exist. Node::Rule gives this error, so that a wrong
  // declaration is an error of whoever creates or reads such a node.
  absl::Status CheckDeclaration() const;

 private:
  OpDef& Declare(OpPart part) {
    declared.push_back(part);
    return *this;
  }
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
