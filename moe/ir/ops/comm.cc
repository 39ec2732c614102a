#include "absl/strings/str_cat.h"
#include "moe/ir/ops/ops.h"
#include "moe/ir/wire_format.h"

// Conversions between placements. Their result types are given by whoever creates them
// (Builder::CreateTyped); operand and result type together say what moves. `steps` is the text form of
// conversion_steps.h, `wire` the format in which values travel (wire_format.h).

namespace moe {
namespace {

absl::StatusOr<std::vector<Type>> SameButPlacement(const Node& n) {
  Type t = n.operand(0).type();
  t.placement = Placement::Replicated(t.rank());
  return std::vector<Type>{t};
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

OpDef Conversion(const char* name, const char* doc, uint32_t effects) {
  return OpDef(name)
      .Doc(doc)
      .Operands({"x"})
      .Results({"y"})
      .Attr("axes", AttrKind::kAxes)
      .Attr("steps", AttrKind::kString, false)
      .Attr("wire", AttrKind::kString, false)
      .Infer(SameButPlacement)
      .Verify(KnownWire)
      .Elementwise()
      .NoGradient()
      .Flops([](const Node&, const ShardingRule&, absl::Span<const double>) { return 0.0; })
      .Effects(effects);
}

}  // namespace

void RegisterCommOps(OpRegistry* r) {
  r->Add(Conversion("comm.convert",
                    "Any change of placement; `insert-collectives` lowers it to the steps below.",
                    kCollective));
  r->Add(Conversion("comm.zero", "replicated -> partial: zero on all but the first rank of each axis. Local.",
                    kPure));
  r->Add(Conversion("comm.slice", "replicated -> shard: keeps the local part. Local.", kPure));
  r->Add(Conversion("comm.all_reduce", "partial -> replicated.", kCollective));
  r->Add(Conversion("comm.reduce_scatter", "partial -> shard.", kCollective));
  r->Add(Conversion("comm.all_gather", "shard -> replicated.", kCollective));
  r->Add(Conversion("comm.all_to_all", "shard of one dim -> shard of another.", kCollective));
  r->Add(Conversion("comm.permute", "Another order of axes in a dim.", kCollective));
  r->Add(Conversion("comm.reshard", "Several steps whose intermediates are no placements (strided shards).",
                    kCollective));
  r->Add(OpDef("comm.stage_reduce")
             .Doc("Reduces a value over pipeline stages: ranks at the same place in the given stages; every "
                  "one of them "
                  "gets the result, and stages outside the list do not take part.")
             .Operands({"x"})
             .Results({"y"})
             .Attr("stages", AttrKind::kInts)
             .Attr("reduction", AttrKind::kString)  // "sum" | "max"
             .Elementwise()
             .LinearIn({0})
             .NoGradient()
             .Effects(kCollective));
}

}  // namespace moe
