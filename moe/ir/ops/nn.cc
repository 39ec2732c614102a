#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/ops/ops.h"

namespace moe {
namespace {

using Values = std::vector<Value>;
using Dys = absl::Span<const Value>;

double Product(absl::Span<const double> extents) {
  double f = 1;
  for (double e : extents) f *= e;
  return f;
}

// With `blocks`, the sequence is so many of them, and queries of a block see keys of the same block alone:
// one step of ring attention, in which every rank holds one block.
std::string AttentionRule(const Node& n, absl::string_view more, absl::string_view results) {
  const std::string text =
      absl::StrCat("b S (k g) d!, b T k d!, b T k d!, S, T", more.empty() ? "" : ", ", more, " -> ", results);
  const bool blocks = n.IntOr("blocks", 1) > 1;
  return absl::StrReplaceAll(text, {{"S", blocks ? "(r s)" : "s"}, {"T", blocks ? "(r t!)" : "t!"}});
}

// The mask of a library's kernel is by index.
absl::Status KnownLibrary(const Node& n) {
  const std::string library = n.StringOr("library", "cudnn");
  if (library != "cudnn") {
    return absl::InvalidArgumentError(
        absl::StrCat("library = ", library, "; the only legal library is cudnn"));
  }
  if (n.Has("library") && n.operand(3) != n.operand(4)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "library = ", library, ", whose mask is by index, with different positions of queries, %",
        n.operand(3).name(), ", and keys, %", n.operand(4).name()));
  }
  return absl::OkStatus();
}

}  // namespace

void RegisterNnOps(OpRegistry* r) {
  r->Add(OpDef("nn.embed")
             .Doc("Rows of a table. An id outside the local part of the vocabulary gives zeros, so a sharded "
                  "vocabulary gives a partial.")
             .Operands({IndexOperand("ids"), "table"})
             .Results({"x"})
             .ResultDTypes({SameAs(1)})
             .Rule("b s, v h -> b s h")
             .LinearIn({1})
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN((*dxs)[1], b.Create("nn.embed_grad", {n->operand(0), dys[0]},
                                                    {{"vocab", n->operand(1).type().dims[0]}}));
               return absl::OkStatus();
             })
             .Gathers(1));
  r->Add(OpDef("nn.embed_grad")
             .Doc("Gradient of nn.embed: adds the rows of dy by id.")
             .Operands({IndexOperand("ids"), "dy"})
             .Results({"dtable"})
             .Attr("vocab", AttrKind::kInt)
             .ResultDTypes({Wider(1)})
             .ComputesIn(Precision::kNarrow)
             .Rule("b s, b s h -> v h")
             .FactorFrom("v", "vocab")
             .LinearIn({1})
             .NoGradient());
  r->Add(OpDef("nn.rms_norm")
             .Doc("x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, eq. 4).")
             .Operands({"x", WideOperand("weight")})
             .Results({"y"})
             .Attr("eps", AttrKind::kFloat)
             .ComputesIn(Precision::kNarrow)
             .Rule("b s h!, h! -> b s h!")
             .LinearIn({1})
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN((*dxs)[0], b.Create("nn.rms_norm_dx", {n->operand(0), n->operand(1), dys[0]},
                                                    {{"eps", n->Float("eps")}}));
               ASSIGN_OR_RETURN((*dxs)[1], b.Create("nn.rms_norm_dw", {n->operand(0), dys[0]},
                                                    {{"eps", n->Float("eps")}}));
               return absl::OkStatus();
             })
             .FlopsPerElement(4));
  r->Add(OpDef("nn.rms_norm_dx")
             .Doc("r g - x r^3 mean(g x), with g = dy weight and r = 1 / sqrt(mean(x^2) + eps).")
             .Operands({"x", WideOperand("weight"), "dy"})
             .Results({"dx"})
             .Attr("eps", AttrKind::kFloat)
             .ComputesIn(Precision::kNarrow)
             .Rule("b s h!, h!, b s h! -> b s h!")
             .LinearIn({2})
             .NoGradient()
             .FlopsPerElement(8));
  r->Add(OpDef("nn.rms_norm_dw")
             .Doc("Sum over tokens of x r dy.")
             .Operands({"x", "dy"})
             .Results({"dweight"})
             .Attr("eps", AttrKind::kFloat)
             .ResultDTypes({Wider(0)})
             .ComputesIn(Precision::kNarrow)
             .Rule("b s h!, b s h! -> h!")
             .LinearIn({1})
             .NoGradient()
             .FlopsPerElement(5));
  r->Add(OpDef("nn.rope")
             .Doc("Rotary positions on [b s n d] (Su et al. 2021): element i < d/2 pairs with i + d/2, by "
                  "the angle position / theta^(2 i / d); `inverse` turns back.")
             .Operands({"x", IndexOperand("positions")})
             .Results({"y"})
             .Attr("theta", AttrKind::kFloat)
             .Attr("inverse", AttrKind::kBool, false)
             .ComputesIn(Precision::kNarrow)
             .Rule("b s n d!, s -> b s n d!")
             .LinearIn({0})
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN((*dxs)[0], b.Create("nn.rope", {dys[0], n->operand(1)},
                                                    {{"theta", n->Float("theta")},
                                                     {"inverse", !n->BoolOr("inverse", false)}}));
               return absl::OkStatus();
             })
             .FlopsPerElement(3));
  r->Add(
      OpDef("nn.attention")
          .Doc(
              "Causal attention with grouped queries: softmax(q k^T / sqrt(d)) v over keys whose position is "
              "not after the query's. Also gives the log-sum-exp of the scaled scores, for the backward. "
              "Blockwise: no [s, t] matrix is ever held (Dao 2023). A query that sees no key has output 0 "
              "and a log-sum-exp of -1e30. With blocks = r, queries see the keys of their own of r blocks of "
              "the sequence. With a library, by its kernel where there is one: positions are those of the "
              "batch, which ascend, so that the mask is by index.")
          .Operands({"q", "k", "v", IndexOperand("q_positions"), IndexOperand("k_positions")})
          .Results({"o", "lse"})
          .Attr("blocks", AttrKind::kInt, false)
          .Attr("library", AttrKind::kString, false)
          .ResultDTypes({SameAs(0), Wider(0)})
          .ComputesIn(Precision::kNarrow)
          .Verify(KnownLibrary)
          .RuleFrom([](const Node& n) { return AttentionRule(n, "", "b S (k g) d!, b S (k g)"); })
          .FactorFrom("r", "blocks")
          .NotDifferentiable({1})
          .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
            ASSIGN_OR_RETURN(
                Node * g,
                b.CreateNode("nn.attention_grad", {n->operand(0), n->operand(1), n->operand(2), n->operand(3),
                                                   n->operand(4), n->result(0), n->result(1), dys[0]}));
            if (n->Has("blocks")) g->Set("blocks", n->Int("blocks"));
            for (int i = 0; i < 3; ++i) (*dxs)[i] = g->result(i);
            return absl::OkStatus();
          })
          .Flops(
              [](const Node&, const ShardingRule&, absl::Span<const double> e) { return 2 * Product(e); }));
  r->Add(OpDef("nn.attention_grad")
             .Doc("Gradient of nn.attention from its output and log-sum-exp.")
             .Operands({"q", "k", "v", IndexOperand("q_positions"), IndexOperand("k_positions"), "o",
                        WideOperand("lse"), "do"})
             .Results({"dq", "dk", "dv"})
             .Attr("blocks", AttrKind::kInt, false)
             .Attr("library", AttrKind::kString, false)
             .ComputesIn(Precision::kNarrow)
             .Verify(KnownLibrary)
             .RuleFrom([](const Node& n) {
               return AttentionRule(n, "b S (k g) d!, b S (k g), b S (k g) d!",
                                    "b S (k g) d!, b T k d!, b T k d!");
             })
             .FactorFrom("r", "blocks")
             .LinearIn({7})
             .NoGradient()
             .Flops([](const Node&, const ShardingRule&, absl::Span<const double> e) {
               return 5 * Product(e);
             }));
  r->Add(OpDef("nn.attention_merge")
             .Doc("Attention over two disjoint sets of keys from that over each: outputs weighted by the "
                  "exponentials of their log-sum-exps (Liu et al. 2023, Ring Attention).")
             .Operands({"o", "lse", "o2", "lse2"})
             .Results({"merged", "merged_lse"})
             .Rule("b s n d!, b s n, b s n d!, b s n -> b s n d!, b s n")
             .NoGradient()
             .FlopsPerElement(3));
  r->Add(
      OpDef("nn.swiglu")
          .Doc("silu(gate) * up (Shazeer 2020), also over ragged rows. Saves its operands, not silu(gate).")
          .Operands({"gate", "up"})
          .Results({"y"})
          .ComputesIn(Precision::kNarrow)
          .Elementwise()
          .LinearIn({1})
          .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
            ASSIGN_OR_RETURN(Node * g,
                             b.CreateNode("nn.swiglu_grad", {n->operand(0), n->operand(1), dys[0]}));
            (*dxs)[0] = g->result(0);
            (*dxs)[1] = g->result(1);
            return absl::OkStatus();
          })
          .FlopsPerElement(5));
  r->Add(OpDef("nn.swiglu_grad")
             .Doc("d(gate) and d(up) of nn.swiglu.")
             .Operands({"gate", "up", "dy"})
             .Results({"dgate", "dup"})
             .ComputesIn(Precision::kNarrow)
             .Elementwise()
             .LinearIn({2})
             .NoGradient()
             .FlopsPerElement(9));
  r->Add(OpDef("nn.softmax")
             .Doc("Softmax over the last dim.")
             .Operands({"x"})
             .Results({"p"})
             .Rule("b c t e! -> b c t e!")
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN((*dxs)[0], b.Create("nn.softmax_grad", {n->result(0), dys[0]}));
               return absl::OkStatus();
             })
             .FlopsPerElement(5));
  r->Add(OpDef("nn.softmax_grad")
             .Doc("p * (dp - sum(p dp)).")
             .Operands({"p", "dp"})
             .Results({"dx"})
             .Rule("b c t e!, b c t e! -> b c t e!")
             .LinearIn({1})
             .NoGradient()
             .FlopsPerElement(4));
  r->Add(OpDef("nn.log_sum_exp")
             .Doc("log(sum(exp(x))) over the last dim.")
             .Operands({"x"})
             .Results({"lse"})
             .Rule("b c t e! -> b c t")
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN((*dxs)[0],
                                b.Create("nn.log_sum_exp_grad", {n->operand(0), n->result(0), dys[0]}));
               return absl::OkStatus();
             })
             .FlopsPerElement(4));
  r->Add(OpDef("nn.log_sum_exp_grad")
             .Doc("exp(x - lse) dy.")
             .Operands({"x", "lse", "dy"})
             .Results({"dx"})
             .Rule("b c t e!, b c t, b c t -> b c t e!")
             .LinearIn({2})
             .NoGradient()
             .FlopsPerElement(3));
  r->Add(OpDef("nn.head_stats")
             .Doc("Head and cross-entropy without whole logits: with logits = x weight^T, per vocabulary "
                  "block u the row maximum and the sum of exp(logit - maximum), and the label's logit. Ids "
                  ">= vocab are padding and have no logit. A label outside the local part contributes zero.")
             .Operands({"x", "weight", IndexOperand("labels")})
             .Results({"max", "sum", "label_logit"})
             .Attr("blocks", AttrKind::kInt)
             .Attr("vocab", AttrKind::kInt)
             .ResultDTypes({Wider(0), Wider(0), Wider(0)})
             .ComputesIn(Precision::kNarrow)
             .Rule("b s h!, (u w!) h!, b s -> b s u, b s u, b s")
             .FactorFrom("u", "blocks")
             .NotDifferentiable({0})
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               if (!dys[1] || !dys[2]) return absl::UnimplementedError("nn.head_stats needs both gradients");
               ASSIGN_OR_RETURN(
                   Node * g,
                   b.CreateNode("nn.head_stats_grad",
                                {n->operand(0), n->operand(1), n->operand(2), n->result(0), dys[1], dys[2]},
                                {{"blocks", n->Int("blocks")}, {"vocab", n->Int("vocab")}}));
               (*dxs)[0] = g->result(0);
               (*dxs)[1] = g->result(1);
               return absl::OkStatus();
             })
             .Flops([](const Node&, const ShardingRule&, absl::Span<const double> e) {
               return 2 * Product(e);
             }));
  r->Add(OpDef("nn.head_stats_grad")
             .Doc("dlogit = dsum exp(logit - max) + dlabel_logit [v = label]; dx = dlogit weight, dweight = "
                  "dlogit^T x. Logits are computed again, one block at a time.")
             .Operands({"x", "weight", IndexOperand("labels"), WideOperand("max"), WideOperand("dsum"),
                        WideOperand("dlabel_logit")})
             .Results({"dx", "dweight"})
             .Attr("blocks", AttrKind::kInt)
             .Attr("vocab", AttrKind::kInt)
             .ResultDTypes({SameAs(0), Wider(0)})
             .ComputesIn(Precision::kNarrow)
             .Rule("b s h!, (u w!) h!, b s, b s u, b s u, b s -> b s h!, (u w!) h!")
             .FactorFrom("u", "blocks")
             .NoGradient()
             .Flops([](const Node&, const ShardingRule&, absl::Span<const double> e) {
               return 6 * Product(e);
             }));
  r->Add(OpDef("nn.merge_sum_exp")
             .Doc("sum over u of sum_u exp(max_u - max).")
             .Operands({"block_max", "block_sum", "max"})
             .Results({"sum"})
             .Rule("b s u, b s u, b s -> b s")
             .LinearIn({1})
             .Gradient([](Node* n, Dys dys, Builder& b, Values* dxs) -> absl::Status {
               ASSIGN_OR_RETURN((*dxs)[1],
                                b.Create("nn.merge_sum_exp_grad", {n->operand(0), n->operand(2), dys[0]}));
               return absl::OkStatus();
             })
             .FlopsPerElement(4));
  r->Add(OpDef("nn.merge_sum_exp_grad")
             .Doc("exp(max_u - max) dsum.")
             .Operands({"block_max", "max", "dsum"})
             .Results({"dblock_sum"})
             .Rule("b s u, b s, b s -> b s u")
             .LinearIn({2})
             .NoGradient()
             .FlopsPerElement(3));
}

}  // namespace moe
