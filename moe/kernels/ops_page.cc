#include "moe/kernels/ops_page.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace moe::kernels {
namespace {

std::string Effects(const OpDef& op) {
  std::vector<std::string> names;
  if (op.Has(kRandom)) names.push_back("random");
  if (op.Has(kDecision)) names.push_back("decision");
  if (op.Has(kStateful)) names.push_back("stateful");
  if (op.Has(kCollective)) names.push_back("collective");
  return absl::StrJoin(names, ", ");
}

std::string RuleText(const OpDef& op) {
  if (op.elementwise) return "elementwise; scalars broadcast";
  if (op.rule_fn) return "from its attributes";
  return absl::StrCat("`", op.rule_text, "`");
}

std::string LinearText(const OpDef& op) {
  if (op.linearity == Linearity::kJointly) return "in all operands together";
  if (op.linearity == Linearity::kNone) return "";
  if (op.linear_all) return "in each operand";
  std::vector<std::string> names;
  for (int i : op.linear_operands) names.push_back(op.operand_names[i]);
  return absl::StrCat("in ", absl::StrJoin(names, ", in "));
}

}  // namespace

std::string SupportTable(const OpRegistry& ops, const KernelRegistry& kernels) {
  std::string s =
      "| op | reference f64 | f32 | bf16 | f16 | cpu f64 | f32 | bf16 | f16 | cuda f32 | bf16 | f16 |\n"
      "|---|---|---|---|---|---|---|---|---|---|---|---|\n";
  for (const OpDef* op : ops.All()) {
    if (absl::StartsWith(op->name, "comm.")) continue;
    absl::StrAppend(&s, "| `", op->name, "` |");
    for (const Backend backend : {Backend::kReference, Backend::kCpu, Backend::kCuda}) {
      for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kF16}) {
        if (backend == Backend::kCuda && dtype == DType::kF64) continue;
        const Kernel* kernel = kernels.Find(op->name, backend, dtype);
        const bool integer = kernels.Find(op->name, backend, DType::kS32) != nullptr;
        absl::StrAppend(&s, kernel != nullptr && kernel->wide != nullptr ? " by f32 |"
                            : kernel != nullptr                          ? " yes |"
                            : integer                                    ? " s32 |"
                                                                         : " - |");
      }
    }
    s += "\n";
  }
  return s;
}

std::string OpsPage(const OpRegistry& ops, const KernelRegistry& kernels) {
  std::string s =
      "# Ops\n\n"
      "Written by `bazel run //tools:gen_ops_doc > docs/ops.md` from the op registry (`moe/ir/ops`) and the "
      "kernel\n"
      "registry (`moe/kernels`); a test fails when this page is stale.\n\n"
      "## Kernels\n\n"
      "`s32`: the op works on integers alone and has one kernel. `by f32`: operands are widened, the f32 "
      "kernel "
      "computes,\n"
      "results are rounded once. CUDA has no f64, and computes in f32 whatever the operands are. Conversions "
      "between\n"
      "placements (`comm.*`) have no kernels: the runtime executes them.\n\n";
  s += SupportTable(ops, kernels);
  std::string family;
  for (const OpDef* op : ops.All()) {
    const std::string mine = op->name.substr(0, op->name.find('.'));
    if (mine != family) {
      absl::StrAppend(&s, "\n## ", mine, "\n");
      family = mine;
    }
    absl::StrAppend(&s, "\n### `", op->name, "`\n\n", op->doc, "\n\n");
    absl::StrAppend(&s, "- `", absl::StrJoin(op->result_names, ", "), op->variadic_results ? ", ..." : "",
                    " = ", op->name, "(", absl::StrJoin(op->operand_names, ", "), op->variadic ? ", ..." : "",
                    ")`\n");
    if (!op->attrs.empty()) {
      absl::StrAppend(&s, "- attributes: ",
                      absl::StrJoin(op->attrs, ", ",
                                    [](std::string* out, const AttrDef& a) {
                                      absl::StrAppend(out, "`", a.name, "` ", AttrKindName(a.kind),
                                                      a.required ? "" : " (optional)");
                                    }),
                      "\n");
    }
    absl::StrAppend(&s, "- sharding rule: ", RuleText(*op), "\n");
    if (const std::string linear = LinearText(*op); !linear.empty())
      absl::StrAppend(&s, "- linear: ", linear, "\n");
    if (op->reduction == Reduction::kMax) s += "- a sharded reduction leaves a partial maximum\n";
    if (op->precision != Precision::kWide) {
      absl::StrAppend(&s, "- mixed precision: ",
                      op->precision == Precision::kNarrow ? "computes in bf16 or f16" : "as its operands",
                      "\n");
    }
    absl::StrAppend(&s, "- gradient: ", op->gradient ? "yes" : "none", "\n");
    if (const std::string effects = Effects(*op); !effects.empty())
      absl::StrAppend(&s, "- effects: ", effects, "\n");
  }
  return s;
}

}  // namespace moe::kernels
