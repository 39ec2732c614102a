#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/ir/ops/ops.h"
#include "moe/ir/wire_format.h"

// Conversions between placements. Operand and result type together say what moves over `axes`, the first of
// them the major one. `dim` says where a shard goes (or comes from) while the result type is not known yet;
// `steps`, or for several parts `parts`, how to get there where the types do not tell it
// (conversion_parts.h); `wire` is the format in which values travel (wire_format.h).
//
// A conversion that other work shall hide stands in two halves. comm.start is the exchange, on the
// communication queue; what it gives is a future. comm.done, on the compute queue, is where the value is
// there: it also reads the source, so that source and destination live until then by the ordinary rules of
// liveness.

namespace moe {
namespace {

absl::StatusOr<std::vector<Type>> SameButPlacement(const Node& n) {
  Type t = n.operand(0).type();
  t.placement = Placement::Replicated(t.rank());
  return std::vector<Type>{t};
}

// Every operand has factors of its own.
absl::StatusOr<std::string> RuleOfParts(const Node& n) {
  std::string terms;
  for (int i = 0; i < n.num_operands(); ++i) {
    if (i > 0) terms += ", ";
    for (int d = 0; d < n.operand(i).type().rank(); ++d)
      absl::StrAppend(&terms, d ? " " : "", "p", i, "_", d);
  }
  return absl::StrCat(terms, " -> ", terms);
}

std::vector<Type> PartTypes(const Node& n, bool future) {
  std::vector<Type> types;
  for (const Value& v : n.operands()) {
    Type t = v.type();
    t.placement = Placement::Replicated(t.rank());
    t.future = future;
    types.push_back(std::move(t));
  }
  return types;
}

absl::Status KnownWire(const Node& n) {
  const std::string wire = n.StringOr("wire", "");
  if (!ParseWireFormat(wire)) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown wire format '", wire, "'; legal are bf16 and f8e4m3"));
  }
  if (!wire.empty() && !IsFloat(n.operand(0).type().dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat("no wire format for ", DTypeName(n.operand(0).type().dtype)));
  }
  return absl::OkStatus();
}

absl::Status VerifyParts(const Node& n) {
  if (n.Has("parts") && static_cast<int>(n.Strings("parts").size()) != n.num_operands()) {
    return absl::InvalidArgumentError(
        absl::StrCat(n.Strings("parts").size(), " parts for ", n.num_operands(), " operands"));
  }
  return KnownWire(n);
}

// Somebody waits for every exchange, once, and holds its source.
absl::Status VerifyStart(const Node& n) {
  if (n.queue != Queue::kComm) return absl::InvalidArgumentError("an exchange runs on the queue comm");
  for (int i = 0; i < n.num_results(); ++i) {
    const std::vector<Use>& uses = n.uses(i);
    if (uses.empty()) continue;  // not yet, while a function is being read; the verifier looks at whole ones
    const bool waits =
        uses.size() == 1 && (uses[0].user->Is("return") ||
                             (uses[0].user->Is("comm.done") && uses[0].operand == 0 &&
                              uses[0].user->num_operands() == 2 && uses[0].user->operand(1) == n.operand(i)));
    if (waits) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("%", n.result_name(i), " is waited for by one comm.done that also reads %",
                     n.operand(i).name(), ", or is returned as a future; it has ", uses.size(), " uses"));
  }
  return VerifyParts(n);
}

absl::Status VerifyDone(const Node& n) {
  if (!n.operand(0).type().future) return absl::InvalidArgumentError("its first operand is not a future");
  if (n.queue != Queue::kCompute) return absl::InvalidArgumentError("waits on the queue compute");
  return absl::OkStatus();
}

enum class Dim { kNone, kTold };  // whether the dim that is sharded can be told

OpDef Conversion(const char* name, const char* doc, uint32_t effects, Dim dim = Dim::kNone) {
  OpDef op(name);
  op.Doc(doc)
      .Operands({"x"})
      .Results({"y"})
      .Attr("axes", AttrKind::kAxes)
      .Attr("steps", AttrKind::kString, false)
      .Attr("wire", AttrKind::kString, false);
  if (dim == Dim::kTold) op.Attr("dim", AttrKind::kInt, false);
  return op.Infer(SameButPlacement).Verify(KnownWire).Elementwise().NoGradient().Effects(effects);
}

}  // namespace

void RegisterCommOps(OpRegistry* r) {
  r->Add(Conversion("comm.convert",
                    "Any change of placement; `insert-collectives` lowers it to the steps below.",
                    kCollective));
  r->Add(Conversion("comm.zero", "replicated -> partial: zero on all but the first rank of each axis. Local.",
                    kPure));
  r->Add(Conversion("comm.slice", "replicated -> shard: keeps the local part. Local.", kPure, Dim::kTold));
  r->Add(Conversion("comm.all_reduce", "partial -> replicated.", kCollective));
  r->Add(Conversion("comm.reduce_scatter", "partial -> shard.", kCollective, Dim::kTold));
  r->Add(Conversion("comm.all_gather", "shard -> replicated.", kCollective, Dim::kTold));
  r->Add(Conversion("comm.all_to_all", "shard of one dim -> shard of another.", kCollective, Dim::kTold));
  r->Add(Conversion("comm.permute", "Another order of axes in a dim.", kCollective));
  r->Add(Conversion(
      "comm.rotate",
      "A step of a ring: every rank's block goes to the next rank of the axes, the last one's to the first.",
      kCollective));
  r->Add(Conversion("comm.reshard", "Several steps whose intermediates are not placements (strided shards).",
                    kCollective));
  r->Add(
      OpDef("comm.bucket")
          .Doc(
              "Several conversions of one kind in one exchange: packed, communicated together, unpacked. The "
              "order of every sum stays what it is without the bucket.")
          .Operands({"x"})
          .Variadic()
          .Results({"y"})
          .VariadicResults()
          .Attr("axes", AttrKind::kAxes)
          .Attr("wire", AttrKind::kString, false)
          .Attr("parts", AttrKind::kStrings, false)
          .Infer([](const Node& n) { return absl::StatusOr<std::vector<Type>>(PartTypes(n, false)); })
          .Verify(VerifyParts)
          .RuleFrom(RuleOfParts)
          .NoGradient()
          .Effects(kCollective));
  // `last`: only when its function runs for the last time in a step.
  r->Add(
      OpDef("comm.start")
          .Doc(
              "Begins one or several conversions of one kind, as comm.bucket does, and gives futures of what "
              "they will have written.")
          .Operands({"x"})
          .Variadic()
          .Results({"future"})
          .VariadicResults()
          .Attr("axes", AttrKind::kAxes)
          .Attr("wire", AttrKind::kString, false)
          .Attr("parts", AttrKind::kStrings, false)
          .Attr("last", AttrKind::kBool, false)
          .Infer([](const Node& n) { return absl::StatusOr<std::vector<Type>>(PartTypes(n, true)); })
          .Verify(VerifyStart)
          .RuleFrom(RuleOfParts)
          .NoGradient()
          .Effects(kCollective));
  r->Add(OpDef("comm.done")
             .Doc("Waits for a future; what is there lies where the future was written. Reads the exchange's "
                  "source, which therefore lives until now.")
             .Operands({"future", "source"})
             .Results({"y"})
             .Infer([](const Node& n) {
               Type t = n.operand(0).type();
               t.future = false;
               return absl::StatusOr<std::vector<Type>>({t});
             })
             .Verify(VerifyDone)
             .Elementwise()
             .NoGradient()
             .InPlace({{0, 0}}));
  // `reduction`: "sum" or "max".
  r->Add(OpDef("comm.stage_reduce")
             .Doc("Reduces a value over pipeline stages: ranks at the same place in the given stages; every "
                  "one of them gets the result, and stages outside the list do not take part.")
             .Operands({"x"})
             .Results({"y"})
             .Attr("stages", AttrKind::kInts)
             .Attr("reduction", AttrKind::kString)
             .Elementwise()
             .LinearIn({0})
             .NoGradient()
             .Effects(kCollective));
}

}  // namespace moe
