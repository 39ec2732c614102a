#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/ops/ops.h"

// Tokens are [batch b, group c, token t, hidden h]; a routing group is one (b, c). Dispatched tokens are
// [expert e, batch b, group c, slot p, hidden h]; with dropless = true the slot dim is ragged. Choices are
// [b, c, t, k]: expert (s32, -1 for a padded token) and slot (s32, -1 for a dropped or padded token).
//
// Where experts are stored by expert slots (passes/expert_slots), moe.choose_replicas turns the experts of
// choices into expert slots, and the expert dim of everything between dispatch and combine is the dim of
// expert slots.

namespace moe {
namespace {

using Values = std::vector<Value>;
using Dys = absl::Span<const Value>;

constexpr char kR[] = "b c t! k!";  // a choice

Attributes Slots(const Node& n, const Type& dispatched) {
  return {{"experts", dispatched.dims[0]},
          {"slots", dispatched.dims[3]},
          {"dropless", n.BoolOr("dropless", false)}};
}

constexpr int64_t kMaxExpertParts = 16;

// Experts r (p l): r blocks, those of the ranks, of p parts of l experts; a part has r l of them. The other
// dims are x1, x2, ...
absl::StatusOr<std::string> RuleOfExpertParts(const Node& n, bool split) {
  const int64_t parts = n.Int("chunks");
  const Type& type = n.operand(0).type();
  if (parts < 1 || parts > kMaxExpertParts || type.rank() < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(parts, " parts of ", type.rank(), " dims; legal are 1 to ", kMaxExpertParts, " parts"));
  }
  std::string rest;
  for (int d = 1; d < type.rank(); ++d) absl::StrAppend(&rest, " x", d);
  const std::vector<std::string> each(parts, absl::StrCat("(r l)", rest));
  const std::string whole = absl::StrCat("(r p! l)", rest), all = absl::StrJoin(each, ", ");
  return split ? absl::StrCat(whole, " -> ", all) : absl::StrCat(all, " -> ", whole);
}

absl::Status VerifyExpertParts(const Node& n, int parts) {
  if (n.Int("chunks") == parts) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("chunks = ", n.Int("chunks"), ", and there are ", parts));
}

}  // namespace

void RegisterMoeOps(OpRegistry* r) {
  r->Add(OpDef("moe.top_k")
             .Doc("The k largest probabilities and their experts, ties to the lower index, in falling order. "
                  "Tokens with mask 0 are not routed: probability 0, expert -1.")
             .Operands({"probability", "mask"})
             .Results({"top", "expert"})
             .Attr("k", AttrKind::kInt)
             .ResultDTypes({SameAs(0), DType::kS32})
             .Rule("b c t e!, b c t -> b c t k!, b c t k!")
             .FactorFrom("k", "k")
             .NotDifferentiable({1})
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN((*dxs)[0], b.Create("moe.top_k_grad", {n->result(1), dys[0]},
                                                    {{"experts", n->operand(0).type().dims[3]}}));
               return absl::OkStatus();
             })
             .Effects(kDecision));
  r->Add(OpDef("moe.top_k_grad")
             .Doc("Scatters d(top) back to the experts chosen.")
             .Operands({IndexOperand("expert"), "dtop"})
             .Results({"dprobability"})
             .Attr("experts", AttrKind::kInt)
             .ResultDTypes({SameAs(1)})
             .Rule("b c t k!, b c t k! -> b c t e")
             .FactorFrom("e", "experts")
             .LinearIn({1})
             .Cheap()
             .NoGradient());
  r->Add(OpDef("moe.normalize")
             .Doc("p / sum over k of p; zero where the sum is zero.")
             .Operands({"p"})
             .Results({"q"})
             .Rule("b c t k! -> b c t k!")
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN((*dxs)[0], b.Create("moe.normalize_grad", {n->operand(0), dys[0]}));
               return absl::OkStatus();
             })
             .FlopsPerElement(2));
  r->Add(OpDef("moe.normalize_grad")
             .Doc("(dq - sum over k of dq q) / sum over k of p.")
             .Operands({"p", "dq"})
             .Results({"dp"})
             .Rule("b c t k!, b c t k! -> b c t k!")
             .LinearIn({1})
             .NoGradient()
             .FlopsPerElement(6));
  r->Add(OpDef("moe.slots")
             .Doc("Slot of each choice within its group and expert, in order of token, then k. Capacity "
                  "lives only here: with dropless = false a slot >= capacity is -1 (dropped).")
             .Operands({IndexOperand("expert")})
             .Results({"slot"})
             .Attr("experts", AttrKind::kInt)
             .Attr("capacity", AttrKind::kInt)
             .Attr("dropless", AttrKind::kBool, false)
             .Rule("b c t! k! -> b c t! k!")
             .Cheap()
             .NoGradient()
             .Effects(kDecision));
  r->Add(OpDef("moe.choose_replicas")
             .Doc("The expert slot of each choice by the map expert slot -> expert (-1: empty), and its slot "
                  "there. Of n replicas, the token with global index i takes number i mod n. Slots are "
                  "counted again, in order of token, then k; what has none, or an expert without expert "
                  "slots, keeps none.")
             .Operands({IndexOperand("expert"), IndexOperand("slot"), IndexOperand("expert_map")})
             .Results({"expert_slot", "slot"})
             .Rule("b c t! k!, b c t! k!, w! -> b c t! k!, b c t! k!")
             .Cheap()
             .NoGradient()
             .Effects(kDecision));
  r->Add(OpDef("moe.sum_replicas")
             .Doc("The sum of the rows of x, by expert slots, that are replicas of each expert; by experts. "
                  "Empty slots are left out.")
             .Operands({"x", IndexOperand("expert_map")})
             .Results({"y"})
             .Attr("experts", AttrKind::kInt)
             .Rule("q f h, w! -> e f h")
             .FactorFrom("e", "experts")
             .LinearIn({0})
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN((*dxs)[0], b.Create("moe.copy_to_replicas", {dys[0], n->operand(1)},
                                                    {{"expert_slots", n->operand(0).type().dims[0]}}));
               return absl::OkStatus();
             }));
  // Not declared linear: a partial must be reduced before it is copied, or a back end that adds up in an
  // order of its own could tell replicas apart.
  r->Add(OpDef("moe.copy_to_replicas")
             .Doc("Rows by experts, copied to the expert slots that hold them; zeros in empty ones.")
             .Operands({"x", IndexOperand("expert_map")})
             .Results({"y"})
             .Attr("expert_slots", AttrKind::kInt)
             .Rule("e f h, w! -> q f h")
             .FactorFrom("q", "expert_slots")
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN((*dxs)[0], b.Create("moe.sum_replicas", {dys[0], n->operand(1)},
                                                    {{"experts", n->operand(0).type().dims[0]}}));
               return absl::OkStatus();
             }));
  r->Add(OpDef("moe.count")
             .Doc("Number of choices per expert, dropped ones too: [e], or [b, e] with per_sequence.")
             .Operands({IndexOperand("expert")})
             .Results({"count"})
             .Attr("experts", AttrKind::kInt)
             .Attr("per_sequence", AttrKind::kBool, false)
             .ResultDTypes({DType::kS32})
             .RuleFrom([](const Node& n) -> absl::StatusOr<std::string> {
               return n.BoolOr("per_sequence", false) ? "b c t k -> b e" : "b c t k -> e";
             })
             .FactorFrom("e", "experts")
             .NoGradient());
  r->Add(OpDef("moe.count_kept")
             .Doc("Number of choices that got a slot, a scalar.")
             .Operands({IndexOperand("slot")})
             .Results({"count"})
             .ResultDTypes({DType::kS32})
             .Rule("b c t k ->")
             .NoGradient());
  r->Add(
      OpDef("moe.split_experts")
          .Doc("Cuts dim 0, experts in `ways` blocks, in parts: part k has the k-th of `chunks` equal runs "
               "of each block. Also of ragged values.")
          .Operands({"x"})
          .Results({"part"})
          .VariadicResults()
          .Attr("chunks", AttrKind::kInt)
          .Attr("ways", AttrKind::kInt)
          .Verify([](const Node& n) { return VerifyExpertParts(n, n.num_results()); })
          .RuleFrom([](const Node& n) { return RuleOfExpertParts(n, true); })
          .FactorFrom("p", "chunks")
          .FactorFrom("r", "ways")
          .LinearInAll()
          .NoGradient());
  r->Add(OpDef("moe.join_experts")
             .Doc("Inverse of moe.split_experts.")
             .Operands({"part"})
             .Variadic()
             .Results({"x"})
             .Attr("chunks", AttrKind::kInt)
             .Attr("ways", AttrKind::kInt)
             .Verify([](const Node& n) { return VerifyExpertParts(n, n.num_operands()); })
             .RuleFrom([](const Node& n) { return RuleOfExpertParts(n, false); })
             .FactorFrom("p", "chunks")
             .FactorFrom("r", "ways")
             .JointlyLinear()
             .NoGradient());
  r->Add(OpDef("moe.dispatch")
             .Doc("Copies tokens to their slots; empty slots are zero. `slots` is the capacity, or with "
                  "dropless the expected extent of the ragged slot dim.")
             .Operands({"x", IndexOperand("expert"), IndexOperand("slot")})
             .Results({"d"})
             .Attr("experts", AttrKind::kInt)
             .Attr("slots", AttrKind::kInt)
             .Attr("dropless", AttrKind::kBool, false)
             .ComputesIn(Precision::kNarrow)
             .Rule(absl::StrCat("b c t! h, ", kR, ", ", kR, " -> e b c p! h"))
             .FactorFrom("e", "experts")
             .FactorFrom("p", "slots")
             .Ragged("p")
             .Routes("e")
             .LinearIn({0})
             .Cheap()
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN((*dxs)[0], b.Create("moe.undispatch", {dys[0], n->operand(1), n->operand(2)},
                                                    {{"dropless", n->BoolOr("dropless", false)}}));
               return absl::OkStatus();
             }));
  r->Add(OpDef("moe.undispatch")
             .Doc("Gradient of moe.dispatch: sums the slots of each token.")
             .Operands({"d", IndexOperand("expert"), IndexOperand("slot")})
             .Results({"x"})
             .Attr("dropless", AttrKind::kBool, false)
             .ComputesIn(Precision::kNarrow)
             .Rule(absl::StrCat("e b c p! h, ", kR, ", ", kR, " -> b c t! h"))
             .Routes("e")
             .LinearIn({0})
             .NoGradient());
  r->Add(
      OpDef("moe.combine")
          .Doc("Sum over a token's choices of probability times expert output; dropped choices add nothing.")
          .Operands({"o", WideOperand("probability"), IndexOperand("expert"), IndexOperand("slot")})
          .Results({"y"})
          .Attr("dropless", AttrKind::kBool, false)
          .ComputesIn(Precision::kNarrow)
          .Rule(absl::StrCat("e b c p! h, ", kR, ", ", kR, ", ", kR, " -> b c t! h"))
          .Routes("e")
          .LinearIn({0, 1})
          .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
            ASSIGN_OR_RETURN((*dxs)[0],
                             b.Create("moe.combine_do", {dys[0], n->operand(1), n->operand(2), n->operand(3)},
                                      Slots(*n, n->operand(0).type())));
            ASSIGN_OR_RETURN((*dxs)[1],
                             b.Create("moe.combine_dp", {n->operand(0), dys[0], n->operand(2), n->operand(3)},
                                      {{"dropless", n->BoolOr("dropless", false)}}));
            return absl::OkStatus();
          })
          .FlopsPerElement(2));
  r->Add(OpDef("moe.combine_do")
             .Doc("d(expert output) of moe.combine: dispatches probability times dy.")
             .Operands({"dy", WideOperand("probability"), IndexOperand("expert"), IndexOperand("slot")})
             .Results({"do"})
             .Attr("experts", AttrKind::kInt)
             .Attr("slots", AttrKind::kInt)
             .Attr("dropless", AttrKind::kBool, false)
             .ComputesIn(Precision::kNarrow)
             .Rule(absl::StrCat("b c t! h, ", kR, ", ", kR, ", ", kR, " -> e b c p! h"))
             .FactorFrom("e", "experts")
             .FactorFrom("p", "slots")
             .Ragged("p")
             .Routes("e")
             .LinearIn({0, 1})
             .Cheap()
             .NoGradient());
  r->Add(
      OpDef("moe.combine_dp")
          .Doc(
              "d(probability) of moe.combine: dot product of expert output and dy; zero for dropped choices.")
          .Operands({"o", "dy", IndexOperand("expert"), IndexOperand("slot")})
          .Results({"dprobability"})
          .Attr("dropless", AttrKind::kBool, false)
          .ResultDTypes({Wider(0)})
          .ComputesIn(Precision::kNarrow)
          .Rule(absl::StrCat("e b c p! h, b c t! h, ", kR, ", ", kR, " -> ", kR))
          .Routes("e")
          .LinearIn({0, 1})
          .NoGradient()
          .FlopsPerElement(2));
}

}  // namespace moe
