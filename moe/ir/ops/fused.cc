#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/ops/fused_program.h"
#include "moe/ir/ops/multi_adamw.h"
#include "moe/ir/ops/ops.h"

// Ops that only `fuse` creates. They stand after autodiff, so they have no gradient.

namespace moe {
namespace {

absl::Status VerifyFused(const Node& n) {
  RETURN_IF_ERROR(ParseFusedProgram(n.Strings("program"), n.num_operands()).status());
  for (const Value& v : n.operands()) {
    if (v.type().rank() != 0 && v.type().dims != n.operand(0).type().dims) {
      return absl::InvalidArgumentError("operands are scalars or have the dims of the first");
    }
  }
  return absl::OkStatus();
}

// As many as the ops that the chain stands for.
double FusedFlops(const Node& n, const ShardingRule&, absl::Span<const double> extents) {
  const absl::StatusOr<FusedProgram> program = ParseFusedProgram(n.Strings("program"), n.num_operands());
  if (!program.ok()) return 0;
  double f = 0;
  for (const FusedInstruction& instruction : *program) {
    f += Ops().Find(absl::StrCat("math.", FusedOpName(instruction.op)))->flops_per_element;
  }
  for (const double e : extents) f *= e;
  return f;
}

// Every tensor has factors of its own: the scalars, then p, gradient, m, v of each tensor; results p, m, v of
// each, and the copies.
absl::StatusOr<std::string> RuleOfMultiAdamW(const Node& n) {
  const int tensors = MultiAdamWTensors(n);
  if (tensors < 1 || n.num_operands() != kMultiAdamWScalars + 4 * tensors ||
      tensors > kMaxMultiAdamWTensors) {
    return absl::InvalidArgumentError(absl::StrCat("takes 5 scalars and 4 operands for each of 1 to ",
                                                   kMaxMultiAdamWTensors, " tensors, not ", n.num_operands(),
                                                   " operands"));
  }
  std::string operands = " , , , , ", results, copies;
  for (int i = 0; i < tensors; ++i) {
    std::string term;
    const int rank = n.operand(kMultiAdamWScalars + 4 * i).type().rank();
    for (int d = 0; d < rank; ++d) absl::StrAppend(&term, d ? " " : "", "p", i, "_", d);
    for (int j = 0; j < 4; ++j) absl::StrAppend(&operands, ", ", term);
    for (int j = 0; j < 3; ++j) absl::StrAppend(&results, results.empty() ? "" : ", ", term);
    if (MultiAdamWCopy(n, i) >= 0) absl::StrAppend(&copies, ", ", term);
  }
  return absl::StrCat(operands, " -> ", results, copies);
}

absl::StatusOr<std::vector<Type>> InferMultiAdamW(const Node& n) {
  std::vector<Type> types;
  for (int i = 0; i < MultiAdamWTensors(n); ++i) {
    for (const int operand : {0, 2, 3}) {
      Type t = n.operand(kMultiAdamWScalars + 4 * i + operand).type();
      t.placement = Placement::Replicated(t.rank());
      types.push_back(std::move(t));
    }
  }
  const std::optional<DType> dtype = ParseDType(n.StringOr("dtype", ""));
  for (int i = 0; i < MultiAdamWTensors(n); ++i) {
    if (MultiAdamWCopy(n, i) < 0) continue;
    if (!dtype)
      return absl::InvalidArgumentError("`copies` needs the attribute `dtype`, the dtype of the copies");
    types.push_back(types[3 * i]);
    types.back().dtype = *dtype;
  }
  return types;
}

absl::Status VerifyMultiAdamW(const Node& n) {
  const int tensors = MultiAdamWTensors(n);
  if (static_cast<int>(n.Strings("weight_decay").size()) != tensors) {
    return absl::InvalidArgumentError(absl::StrCat("weight_decay has ", n.Strings("weight_decay").size(),
                                                   " entries for ", tensors, " tensors"));
  }
  if (n.Has("copies")) {
    int64_t last = -1;
    for (const int64_t i : n.Ints("copies")) {
      if (i <= last || i >= tensors) {
        return absl::InvalidArgumentError(
            absl::StrCat("copies has ", i, "; legal are ascending numbers below ", tensors));
      }
      last = i;
    }
  }
  for (const std::string& decay : n.Strings("weight_decay")) {
    double x = 0;
    if (!absl::SimpleAtod(decay, &x)) {
      return absl::InvalidArgumentError(absl::StrCat("weight_decay entry '", decay, "' is not a number"));
    }
  }
  return absl::OkStatus();
}

std::map<int, int> MultiAdamWInPlace() {
  std::map<int, int> in_place;
  for (int i = 0; i < kMaxMultiAdamWTensors; ++i) {
    const int first = kMultiAdamWScalars + 4 * i;
    in_place[3 * i] = first;
    in_place[3 * i + 1] = first + 2;
    in_place[3 * i + 2] = first + 3;
  }
  return in_place;
}

}  // namespace

int MultiAdamWCopy(const Node& n, int tensor) {
  if (!n.Has("copies")) return -1;
  const std::vector<int64_t>& copies = n.Ints("copies");
  const auto it = std::find(copies.begin(), copies.end(), tensor);
  return it == copies.end() ? -1 : 3 * MultiAdamWTensors(n) + static_cast<int>(it - copies.begin());
}
int MultiAdamWTensors(const Node& n) { return (n.num_operands() - kMultiAdamWScalars) / 4; }

void RegisterFusedOps(OpRegistry* r) {
  r->Add(OpDef("math.fused")
             .Doc("A chain of elementwise ops in one pass over memory. `program` is a list of instructions "
                  "in SSA form, \"t0 = mul x0 x1\", \"t1 = scale t0 0.5\": x<i> is operand i, the last t the "
                  "result. Operands have the dims of the first, or are scalars; also over ragged rows.")
             .Operands({"x"})
             .Variadic()
             .Results({"y"})
             .Attr("program", AttrKind::kStrings)
             .ComputesIn(Precision::kFollows)
             .Verify(VerifyFused)
             .Elementwise()
             .NoGradient()
             .Flops(FusedFlops));
  r->Add(OpDef("moe.router")
             .Doc("nn.softmax, moe.top_k and moe.count of its experts in one.")
             .Operands({"logits", "mask"})
             .Results({"probability", "top", "expert", "count"})
             .Attr("k", AttrKind::kInt)
             .ResultDTypes({SameAs(0), SameAs(0), DType::kS32, DType::kS32})
             .Rule("b c t e!, b c t -> b c t e!, b c t k!, b c t k!, e!")
             .FactorFrom("k", "k")
             .NoGradient()
             .FlopsPerElement(6)
             .Effects(kDecision));
  r->Add(OpDef("moe.softmax_top_k")
             .Doc("nn.softmax and moe.top_k in one: moe.router where the choices are counted elsewhere.")
             .Operands({"logits", "mask"})
             .Results({"probability", "top", "expert"})
             .Attr("k", AttrKind::kInt)
             .ResultDTypes({SameAs(0), SameAs(0), DType::kS32})
             .Rule("b c t e!, b c t -> b c t e!, b c t k!, b c t k!")
             .FactorFrom("k", "k")
             .NoGradient()
             .FlopsPerElement(6)
             .Effects(kDecision));
  r->Add(OpDef("nn.add_rms_norm")
             .Doc("sum = x + y; normed = rms_norm(sum, weight).")
             .Operands({"x", "y", WideOperand("weight")})
             .Results({"sum", "normed"})
             .Attr("eps", AttrKind::kFloat)
             .ComputesIn(Precision::kNarrow)
             .Rule("b s h!, b s h!, h! -> b s h!, b s h!")
             .NoGradient()
             .FlopsPerElement(5));
  r->Add(OpDef("optim.multi_adamw")
             .Doc("optim.adamw of several tensors. Operands: the 5 scalars, then p, gradient, m, v of each "
                  "tensor; results: p, m, v of each, then the new p rounded to `dtype` of the tensors that "
                  "`copies` numbers. `weight_decay` has one number per tensor.")
             .Operands({"factor", "finite", "learning_rate", "bias1", "bias2"})
             .Repeated({"p", AnyFloatOperand("gradient"), "m", "v"})
             .Results({"p", "m", "v"})
             .VariadicResults()
             .Attr("beta1", AttrKind::kFloat)
             .Attr("beta2", AttrKind::kFloat)
             .Attr("eps", AttrKind::kFloat)
             .Attr("weight_decay", AttrKind::kStrings)
             .Attr("copies", AttrKind::kInts, /*required=*/false)
             .Attr("dtype", AttrKind::kString, /*required=*/false)
             .Infer(InferMultiAdamW)
             .Verify(VerifyMultiAdamW)
             .RuleFrom(RuleOfMultiAdamW)
             .NoGradient()
             .Flops([](const Node& n, const ShardingRule& rule, absl::Span<const double> e) {
               double f = 0;
               for (int i = 0; i < MultiAdamWTensors(n); ++i) {
                 double elements = 14;
                 for (const FactorDim& dim : rule.results[3 * i]) elements *= e[dim[0]];
                 f += elements;
               }
               return f;
             })
             .InPlace(MultiAdamWInPlace())
             .Effects(kStateful));
}

}  // namespace moe
