#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/ops/ops.h"

namespace moe {
namespace {

using Values = std::vector<Value>;
using Dys = absl::Span<const Value>;

absl::StatusOr<std::string> RuleOfEq(const Node& n) { return n.String("eq"); }

// "a0 (r a1) a2 -> a0 (r a1) a2" for dim = 1; with `fixed`, "a0 a1! a2 -> a0 a1! a2".
absl::StatusOr<std::string> BlocksOfDim(const Node& n, bool fixed) {
  const int64_t dim = n.Int("dim"), rank = n.operand(0).type().rank();
  if (dim < 0 || dim >= rank) {
    return absl::InvalidArgumentError(
        absl::StrCat(n.op_name(), ": dim = ", dim, " of an operand with ", rank, " dims"));
  }
  std::vector<std::string> term;
  for (int64_t d = 0; d < rank; ++d) {
    term.push_back(absl::StrCat(d == dim && !fixed ? "(r " : "", "a", d, d != dim ? "" : fixed ? "!" : ")"));
  }
  return absl::StrCat(absl::StrJoin(term, " "), " -> ", absl::StrJoin(term, " "));
}

absl::Status VerifyOrder(const Node& n) {
  const std::vector<int64_t>& order = n.Ints("order");
  const int64_t extent = n.operand(0).type().dims[n.Int("dim")], blocks = static_cast<int64_t>(order.size());
  std::vector<int64_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  for (int64_t i = 0; i < blocks; ++i) {
    if (sorted[i] != i) {
      return absl::InvalidArgumentError(absl::StrCat("math.permute_blocks: order = [",
                                                     absl::StrJoin(order, ", "),
                                                     "] is not a permutation of 0 to ", blocks - 1));
    }
  }
  if (blocks > 0 && extent % blocks == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "math.permute_blocks: ", blocks, " blocks do not divide dim ", n.Int("dim"), " of extent ", extent));
}

std::vector<std::string> Factors(absl::string_view term) {
  return absl::StrSplit(term, ' ', absl::SkipEmpty());
}

// What else `multiply` asks of an einsum (a grouped matrix product) kernels know
// (moe/kernels/rounded_operands.h).
absl::Status VerifyEinsum(const Node& n) {
  const std::string multiply = n.StringOr("multiply", "");
  if (multiply.empty()) return absl::OkStatus();
  if (multiply != "f8e4m3" || n.num_operands() != 2) {
    return absl::InvalidArgumentError(absl::StrCat("math.einsum of ", n.num_operands(),
                                                   " operands with multiply = \"", multiply,
                                                   "\"; legal is \"f8e4m3\", with two"));
  }
  return absl::OkStatus();
}

// d(einsum): dy with the other operands, contracted to this operand's factors. A factor of this operand that
// is nowhere else was summed away, so its gradient is a broadcast.
absl::Status EinsumGradient(Node* n, Dys dys, Builder& b, Values* dxs) {
  const std::string eq = absl::StrReplaceAll(n->String("eq"), {{"!", ""}});
  const std::vector<std::string> sides = absl::StrSplit(eq, absl::MaxSplits("->", 1));
  const std::vector<std::string> terms = absl::StrSplit(sides[0], ',');
  const std::vector<std::string> out = Factors(sides[1]);
  for (int i = 0; i < n->num_operands(); ++i) {
    const std::vector<std::string> mine = Factors(terms[i]);
    std::set<std::string> have(out.begin(), out.end());
    std::vector<std::string> in_terms = {absl::StrJoin(out, " ")};
    std::vector<Value> operands = {dys[0]};
    for (int j = 0; j < n->num_operands(); ++j) {
      if (j == i) continue;
      const std::vector<std::string> other = Factors(terms[j]);
      have.insert(other.begin(), other.end());
      in_terms.push_back(absl::StrJoin(other, " "));
      operands.push_back(n->operand(j));
    }
    std::vector<std::string> part;
    for (const std::string& f : mine) {
      if (have.count(f)) part.push_back(f);
    }
    Value d = dys[0];
    if (operands.size() > 1 || part != out) {
      Attributes attributes = {
          {"eq", absl::StrCat(absl::StrJoin(in_terms, ", "), " -> ", absl::StrJoin(part, " "))}};
      // The gradient of rounding is taken to be 1, and gradients are multiplied like values.
      if (n->Has("multiply")) attributes["multiply"] = n->String("multiply");
      ASSIGN_OR_RETURN(d, b.Create("math.einsum", operands, attributes));
    }
    if (part != mine) {
      std::vector<std::string> extents;
      for (size_t k = 0; k < mine.size(); ++k) {
        if (!have.count(mine[k])) extents.push_back(absl::StrCat(mine[k], "=", n->operand(i).type().dims[k]));
      }
      ASSIGN_OR_RETURN(
          d, b.Create("math.broadcast", {d},
                      {{"eq", absl::StrCat(absl::StrJoin(part, " "), " -> ", absl::StrJoin(mine, " "))},
                       {"extents", extents}}));
    }
    (*dxs)[i] = d;
  }
  return absl::OkStatus();
}

// The inverse of a reshape swaps the sides of its rule; extents of all factors are given, so compound dims
// resolve.
absl::Status ReshapeGradient(Node* n, Dys dys, Builder& b, Values* dxs) {
  const std::vector<std::string> sides = absl::StrSplit(n->String("eq"), absl::MaxSplits("->", 1));
  ASSIGN_OR_RETURN((*dxs)[0], b.Create("math.reshape", {dys[0]},
                                       {{"eq", absl::StrCat(absl::StripAsciiWhitespace(sides[1]), " -> ",
                                                            absl::StripAsciiWhitespace(sides[0]))},
                                        {"extents", n->Strings("extents")}}));
  return absl::OkStatus();
}

// The gradient of an operand that was broadcast, a scalar, is the sum over all elements.
absl::StatusOr<Value> GradientOfOperand(Value d, Value operand, Builder& b) {
  if (operand.type().rank() == d.type().rank()) return d;
  std::vector<std::string> dims;
  for (int i = 0; i < d.type().rank(); ++i) dims.push_back(absl::StrCat("a", i));
  return b.Create("math.einsum", {d}, {{"eq", absl::StrCat(absl::StrJoin(dims, " "), " ->")}});
}

absl::StatusOr<std::vector<Type>> InferConstant(const Node& n) {
  const std::optional<DType> dtype = ParseDType(n.String("dtype"));
  if (!dtype) return absl::InvalidArgumentError(absl::StrCat("unknown dtype '", n.String("dtype"), "'"));
  return std::vector<Type>{Type(*dtype, Dims{})};
}

absl::StatusOr<std::vector<Type>> InferCast(const Node& n) {
  const std::optional<DType> dtype = ParseDType(n.String("dtype"));
  if (!dtype) return absl::InvalidArgumentError(absl::StrCat("unknown dtype '", n.String("dtype"), "'"));
  Type t = n.operand(0).type();
  t.dtype = *dtype;
  t.placement = Placement::Replicated(t.rank());
  return std::vector<Type>{t};
}

absl::StatusOr<std::string> ReduceAll(const Node& n) {
  std::string s;
  for (int i = 0; i < n.operand(0).type().rank(); ++i) absl::StrAppend(&s, i ? " " : "", "a", i);
  return s + " ->";
}

double EinsumFlops(const Node& n, const ShardingRule& rule, absl::Span<const double> extents) {
  double f = n.num_operands() > 1 ? 2 : 1;
  for (double e : extents) f *= e;
  return f;
}

}  // namespace

void RegisterMathOps(OpRegistry* r) {
  r->Add(OpDef("math.constant")
             .Doc("A scalar constant.")
             .Operands({})
             .Results({"y"})
             .Attr("value", AttrKind::kFloat)
             .Attr("dtype", AttrKind::kString)
             .Infer(InferConstant)
             .Rule("->")
             .NoGradient());
  r->Add(OpDef("math.einsum")
             .Doc("Sum of products over the factors that the result lacks; one to three operands. Over a "
                  "ragged operand [e b c p h] this is the grouped matmul of the experts. `dtype` is that of "
                  "the result, where it is wider than the operands'. multiply = \"f8e4m3\": a grouped matrix "
                  "product of operands rounded to e4m3, each with an f32 scale per 128 values along the "
                  "summed side of the local shard.")
             .Operands({"x"})
             .Variadic()
             .Results({"y"})
             .Attr("eq", AttrKind::kString)
             .Attr("dtype", AttrKind::kString, false)
             .Attr("multiply", AttrKind::kString, false)
             .ResultDTypes({FromAttribute("dtype")})
             .ComputesIn(Precision::kFollows)
             .Verify(VerifyEinsum)
             .RuleFrom(RuleOfEq)
             .LinearInAll()
             .Gradient(EinsumGradient)
             .Flops(EinsumFlops));
  r->Add(OpDef("math.broadcast")
             .Doc("Repeats x along the factors that only the result has (extents = [\"f=12\"]).")
             .Operands({"x"})
             .Results({"y"})
             .Attr("eq", AttrKind::kString)
             .Attr("extents", AttrKind::kStrings)
             .ComputesIn(Precision::kFollows)
             .RuleFrom(RuleOfEq)
             .LinearIn({0})
             .Cheap()
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               const std::vector<std::string> sides =
                   absl::StrSplit(n->String("eq"), absl::MaxSplits("->", 1));
               ASSIGN_OR_RETURN((*dxs)[0],
                                b.Create("math.einsum", {dys[0]},
                                         {{"eq", absl::StrCat(absl::StripAsciiWhitespace(sides[1]), " -> ",
                                                              absl::StripAsciiWhitespace(sides[0]))}}));
               return absl::OkStatus();
             }));
  r->Add(OpDef("math.reshape")
             .Doc("Splits or merges dims: eq = \"b (c t) h -> b c t h\", extents = [\"c=8\"] or both "
                  "factors. Row-major order does not change.")
             .Operands({"x"})
             .Results({"y"})
             .Attr("eq", AttrKind::kString)
             .Attr("extents", AttrKind::kStrings)
             .ComputesIn(Precision::kFollows)
             .RuleFrom(RuleOfEq)
             .LinearIn({0})
             .Cheap()
             .Gradient(ReshapeGradient));
  r->Add(OpDef("math.permute_blocks")
             .Doc("Another order of equal blocks of a dim: block i of the result is block order[i] of x.")
             .Operands({"x"})
             .Results({"y"})
             .Attr("dim", AttrKind::kInt)
             .Attr("order", AttrKind::kInts)
             .ComputesIn(Precision::kFollows)
             .Verify(VerifyOrder)
             .RuleFrom([](const Node& n) { return BlocksOfDim(n, /*fixed=*/true); })
             .LinearIn({0})
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               const std::vector<int64_t>& order = n->Ints("order");
               std::vector<int64_t> inverse(order.size());
               for (size_t i = 0; i < order.size(); ++i) inverse[order[i]] = static_cast<int64_t>(i);
               ASSIGN_OR_RETURN((*dxs)[0], b.Create("math.permute_blocks", {dys[0]},
                                                    {{"dim", n->Int("dim")}, {"order", inverse}}));
               return absl::OkStatus();
             }));
  r->Add(OpDef("math.rotate")
             .Doc("Moves equal blocks of a dim by one place: block i of the result is block i - 1 of x, "
                  "block 0 the last. Where every rank holds one block, a step of a ring: `shard` makes it "
                  "comm.rotate.")
             .Operands({"x"})
             .Results({"y"})
             .Attr("dim", AttrKind::kInt)
             .Attr("blocks", AttrKind::kInt)
             .ComputesIn(Precision::kFollows)
             .RuleFrom([](const Node& n) { return BlocksOfDim(n, /*fixed=*/false); })
             .FactorFrom("r", "blocks")
             .Exchanges("r")
             .LinearIn({0})
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               Value d = dys[0];  // n - 1 places forward is one back
               for (int64_t i = 1; i < n->Int("blocks"); ++i) {
                 ASSIGN_OR_RETURN(
                     d, b.Create("math.rotate", {d}, {{"dim", n->Int("dim")}, {"blocks", n->Int("blocks")}}));
               }
               (*dxs)[0] = d;
               return absl::OkStatus();
             }));
  r->Add(OpDef("math.add")
             .Doc("x + y, elementwise.")
             .Operands({"x", "y"})
             .Results({"z"})
             .ComputesIn(Precision::kFollows)
             .Elementwise()
             .JointlyLinear()
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               for (int i = 0; i < 2; ++i) {
                 ASSIGN_OR_RETURN((*dxs)[i], GradientOfOperand(dys[0], n->operand(i), b));
               }
               return absl::OkStatus();
             }));
  r->Add(OpDef("math.mul")
             .Doc("x * y, elementwise; y has the shape of x.")
             .Operands({"x", "y"})
             .Results({"z"})
             .Elementwise()
             .LinearIn({0, 1})
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               for (int i = 0; i < 2; ++i) {
                 ASSIGN_OR_RETURN(Value d, b.Create("math.mul", {dys[0], n->operand(1 - i)}));
                 ASSIGN_OR_RETURN((*dxs)[i], GradientOfOperand(d, n->operand(i), b));
               }
               return absl::OkStatus();
             }));
  r->Add(OpDef("math.scale")
             .Doc("x * by, a constant.")
             .Operands({"x"})
             .Results({"y"})
             .Attr("by", AttrKind::kFloat)
             .ComputesIn(Precision::kFollows)
             .Elementwise()
             .LinearIn({0})
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN((*dxs)[0], b.Create("math.scale", {dys[0]}, {{"by", n->Float("by")}}));
               return absl::OkStatus();
             }));
  r->Add(OpDef("math.silu")
             .Doc("x * sigmoid(x).")
             .Operands({"x"})
             .Results({"y"})
             .ComputesIn(Precision::kNarrow)
             .Elementwise()
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN((*dxs)[0], b.Create("math.silu_grad", {n->operand(0), dys[0]}));
               return absl::OkStatus();
             })
             .FlopsPerElement(4));
  r->Add(OpDef("math.silu_grad")
             .Doc("dy * sigmoid(x) * (1 + x * (1 - sigmoid(x))).")
             .Operands({"x", "dy"})
             .Results({"dx"})
             .ComputesIn(Precision::kNarrow)
             .Elementwise()
             .LinearIn({1})
             .NoGradient()
             .FlopsPerElement(9));
  r->Add(OpDef("math.log")
             .Doc("Natural logarithm.")
             .Operands({"x"})
             .Results({"y"})
             .Elementwise()
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN(Value inverse, b.Create("math.reciprocal", {n->operand(0)}));
               ASSIGN_OR_RETURN((*dxs)[0], b.Create("math.mul", {dys[0], inverse}));
               return absl::OkStatus();
             }));
  r->Add(OpDef("math.reciprocal")
             .Doc("1 / x. Used for normalisers, which are inputs: no gradient.")
             .Operands({"x"})
             .Results({"y"})
             .Elementwise()
             .NoGradient());
  r->Add(OpDef("math.at_least")
             .Doc("max(x, value), a constant: guards a normaliser against zero.")
             .Operands({"x"})
             .Results({"y"})
             .Attr("value", AttrKind::kFloat)
             .Elementwise()
             .NoGradient());
  r->Add(OpDef("math.cast")
             .Doc("Conversion to another dtype.")
             .Operands({"x"})
             .Results({"y"})
             .Attr("dtype", AttrKind::kString)
             .Infer(InferCast)
             .Elementwise()
             .LinearIn({0})
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               const DType from = n->operand(0).type().dtype;
               if (!IsFloat(from)) return absl::OkStatus();
               ASSIGN_OR_RETURN((*dxs)[0],
                                b.Create("math.cast", {dys[0]}, {{"dtype", std::string(DTypeName(from))}}));
               return absl::OkStatus();
             }));
  r->Add(OpDef("math.reduce_max")
             .Doc("Maximum over the factors that the result lacks. A shift for a sum of exponentials: no "
                  "gradient.")
             .Operands({"x"})
             .Results({"y"})
             .Attr("eq", AttrKind::kString)
             .RuleFrom(RuleOfEq)
             .ReducesWith(Reduction::kMax)
             .NoGradient());
  r->Add(OpDef("math.sum_squares")
             .Doc("Sum of the squares of all elements, a scalar.")
             .Operands({"x"})
             .Results({"y"})
             .ResultDTypes({Wider(0)})
             .RuleFrom(ReduceAll)
             .NoGradient()
             .FlopsPerElement(2));
}

}  // namespace moe
