#include "moe/passes/context_parallel.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/cost/node_cost.h"
#include "moe/ir/builder.h"
#include "moe/ir/state.h"

namespace moe::passes {
namespace {

constexpr char kPass[] = "context-parallel";
constexpr int kSequence = 1;  // the dim of tokens and of heads

// Block i of the sequence as the ranks have it is block order[i] of the batch's.
std::vector<int64_t> ZigZag(int64_t cp) {
  std::vector<int64_t> order;
  for (int64_t i = 0; i < cp; ++i) order.insert(order.end(), {i, 2 * cp - 1 - i});
  return order;
}

std::vector<int64_t> Inverse(const std::vector<int64_t>& order) {
  std::vector<int64_t> inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i) inverse[order[i]] = static_cast<int64_t>(i);
  return inverse;
}

// Number of routing groups that a reshape splits the sequence into, or merges; 0 for other reshapes.
int64_t RoutingGroups(const Node& n) {
  if (!n.Is("math.reshape")) return 0;
  const absl::StatusOr<const ShardingRule*> rule = n.Rule();
  const absl::StatusOr<std::vector<int64_t>> extents = FactorExtents(n);
  if (!rule.ok() || !extents.ok()) return 0;
  const int c = (*rule)->Find("c"), t = (*rule)->Find("t");
  return c < 0 || t < 0 ? 0 : (*extents)[c];
}
bool Splits(const Node& n) { return n.type().rank() > n.operand(0).type().rank(); }

class Order {
 public:
  Order(Function* step, int64_t cp) : f_(step), cp_(cp), order_(ZigZag(cp)) {}

  absl::Status Apply() {
    for (Node* a : f_->args()) {
      const int rank = a->type().rank();
      if (a->binding.kind != Binding::kBatch || rank == 0 || !a->HasUses()) continue;
      const std::vector<Use> uses = a->uses();
      Builder b = Builder::Before(f_->Nodes().front());
      b.provenance = {kPass, absl::StrCat("zig-zag over ", cp_, " context ranks")};
      b.scope = "embedding";
      ASSIGN_OR_RETURN(const Value y, Permute(b, a->result(), rank == 1 ? 0 : kSequence, order_,
                                              a->result_name() + ".zigzag"));
      for (const Use& u : uses) u.user->SetOperand(u.operand, y);
    }
    for (Node* n : f_->Nodes()) {
      const int64_t groups = RoutingGroups(*n);
      if (groups > 0 && groups % (2 * cp_) != 0) RETURN_IF_ERROR(AroundGroups(n));
      // Whole groups that changed places: who compares decisions by index has to know.
      if (n->op().Has(kDecision) && n->num_results() > 1 && n->type(1).rank() > 1 &&
          n->type(1).dims[1] % (2 * cp_) == 0) {
        n->Set("order", order_);
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<Value> Permute(Builder& b, Value x, int64_t dim, const std::vector<int64_t>& order,
                                const std::string& name) {
    return b.Create("math.permute_blocks", {x}, {{"dim", dim}, {"order", order}}, name);
  }

  // Groups are those of the batch's order.
  absl::Status AroundGroups(Node* n) {
    if (Splits(*n)) {
      Builder b = Builder::Before(n);
      b.provenance = {kPass, "routing groups are of the batch's order"};
      ASSIGN_OR_RETURN(const Value x, Permute(b, n->operand(0), kSequence, Inverse(order_),
                                              n->operand(0).name() + ".in_order"));
      n->SetOperand(0, x);
      return absl::OkStatus();
    }
    Builder b = Builder::After(n);
    b.provenance = {kPass, "back to the zig-zag after routing"};
    const std::vector<Use> uses = n->uses();
    ASSIGN_OR_RETURN(const Value y, Permute(b, n->result(), kSequence, order_, n->result_name() + ".zigzag"));
    for (const Use& u : uses) u.user->SetOperand(u.operand, y);
    return absl::OkStatus();
  }

  Function* const f_;
  const int64_t cp_;
  const std::vector<int64_t> order_;
};

class Ring {
 public:
  Ring(Function* step, int64_t cp) : f_(step), cp_(cp) {}

  absl::Status Apply() {
    for (Node* n : f_->NodesOf("nn.attention")) RETURN_IF_ERROR(Forward(n));
    for (Node* n : f_->NodesOf("nn.attention_grad")) RETURN_IF_ERROR(Backward(n));
    return absl::OkStatus();
  }

 private:
  Attributes Blocks() const { return {{"blocks", cp_}}; }

  Builder At(Node* n) const {
    Builder b = Builder::Before(n);
    b.provenance = {kPass, absl::StrCat("ring over ", cp_, " context ranks, for %", n->result_name())};
    return b;
  }

  absl::StatusOr<Value> Rotate(Builder& b, Value x, int dim, const std::string& name) {
    return b.Create("math.rotate", {x}, {{"dim", int64_t{dim}}, {"blocks", cp_}}, name);
  }

  // Positions of the keys after `turns` rotations, made once: they depend on inputs alone.
  absl::StatusOr<Value> Positions(Value positions, int64_t turns) {
    if (turns == 0) return positions;
    const auto it = positions_.find({positions, turns});
    if (it != positions_.end()) return it->second;
    ASSIGN_OR_RETURN(const Value before, Positions(positions, turns - 1));
    Builder b = before.node->Is("arg") ? Builder::Before(f_->Nodes().front()) : Builder::After(before.node);
    b.phase = Phase::kForward;
    b.scope = "embedding";
    b.provenance = {kPass, "positions of the keys that come round"};
    ASSIGN_OR_RETURN(const Value y, Rotate(b, before, 0, absl::StrCat(positions.name(), ".turn", turns)));
    return positions_[{positions, turns}] = y;
  }

  // `values` stand for the results of `n`, under the same names.
  absl::Status TakeOver(Node* n, const std::vector<Value>& values) {
    std::vector<std::string> names;
    for (size_t i = 0; i < values.size(); ++i) {
      names.push_back(n->result_name(static_cast<int>(i)));
      f_->ReplaceAllUses(n->result(static_cast<int>(i)), values[i]);
    }
    f_->Erase(n);
    for (size_t i = 0; i < values.size(); ++i) values[i].node->SetResultName(values[i].index, names[i]);
    return absl::OkStatus();
  }

  absl::Status Forward(Node* n) {
    const std::string name = n->result_name(0);
    const Value q = n->operand(0), qp = n->operand(3);
    Value k = n->operand(1), v = n->operand(2), o, lse;
    Builder b = At(n);
    for (int64_t step = 0; step < cp_; ++step) {
      // The next keys travel while these are looked at.
      Value next_k, next_v;
      if (step + 1 < cp_) {
        ASSIGN_OR_RETURN(next_k,
                         Rotate(b, k, kSequence, absl::StrCat(n->operand(1).name(), ".turn", step + 1)));
        ASSIGN_OR_RETURN(next_v,
                         Rotate(b, v, kSequence, absl::StrCat(n->operand(2).name(), ".turn", step + 1)));
      }
      ASSIGN_OR_RETURN(const Value kp, Positions(n->operand(4), step));
      ASSIGN_OR_RETURN(Node * part, b.CreateNode("nn.attention", {q, k, v, qp, kp}, Blocks(),
                                                 absl::StrCat(name, ".step", step)));
      if (step == 0) {
        o = part->result(0), lse = part->result(1);
      } else {
        ASSIGN_OR_RETURN(Node * merged,
                         b.CreateNode("nn.attention_merge", {o, lse, part->result(0), part->result(1)}, {},
                                      absl::StrCat(name, ".merge", step)));
        o = merged->result(0), lse = merged->result(1);
      }
      k = next_k, v = next_v;
    }
    return TakeOver(n, {o, lse});
  }

  absl::Status Backward(Node* n) {
    const std::string name = n->result_name(0);
    Value k = n->operand(1), v = n->operand(2), dq, dk, dv;
    Builder b = At(n);
    for (int64_t step = 0; step < cp_; ++step) {
      Value next_k, next_v;
      if (step + 1 < cp_) {
        ASSIGN_OR_RETURN(next_k, Rotate(b, k, kSequence, absl::StrCat(name, ".k", step + 1)));
        ASSIGN_OR_RETURN(next_v, Rotate(b, v, kSequence, absl::StrCat(name, ".v", step + 1)));
      }
      ASSIGN_OR_RETURN(const Value kp, Positions(n->operand(4), step));
      ASSIGN_OR_RETURN(Node * part, b.CreateNode("nn.attention_grad",
                                                 {n->operand(0), k, v, n->operand(3), kp, n->operand(5),
                                                  n->operand(6), n->operand(7)},
                                                 Blocks(), absl::StrCat(name, ".step", step)));
      if (step == 0) {
        dq = part->result(0), dk = part->result(1), dv = part->result(2);
      } else {
        ASSIGN_OR_RETURN(dq,
                         b.Create("math.add", {dq, part->result(0)}, {}, absl::StrCat(name, ".sum", step)));
        ASSIGN_OR_RETURN(dk,
                         b.Create("math.add", {dk, part->result(1)}, {}, absl::StrCat(name, ".dk", step)));
        ASSIGN_OR_RETURN(dv,
                         b.Create("math.add", {dv, part->result(2)}, {}, absl::StrCat(name, ".dv", step)));
      }
      // With their keys to the next rank; in the end, home.
      ASSIGN_OR_RETURN(dk, Rotate(b, dk, kSequence, absl::StrCat(name, ".dk_turn", step + 1)));
      ASSIGN_OR_RETURN(dv, Rotate(b, dv, kSequence, absl::StrCat(name, ".dv_turn", step + 1)));
      k = next_k, v = next_v;
    }
    return TakeOver(n, {dq, dk, dv});
  }

  Function* const f_;
  const int64_t cp_;
  std::map<std::pair<Value, int64_t>, Value> positions_;
};

}  // namespace

AttentionSeconds EstimateAttention(const Node& attention, const strategy::Strategy& s, const Mesh& mesh,
                                   const cost::Target& target) {
  const Type &q = attention.operand(0).type(), &k = attention.operand(1).type();
  const double cp = static_cast<double>(s.cp), dp = static_cast<double>(s.dp), tp = static_cast<double>(s.tp);
  const double batch = static_cast<double>(q.dims[0]) / dp, sequence = static_cast<double>(q.dims[1]) / cp;
  const double heads = static_cast<double>(q.dims[2]) / tp, width = static_cast<double>(q.dims[3]);
  const double kv_heads = std::max(1.0, static_cast<double>(k.dims[2]) / tp);
  // One block of queries with one of keys, half of which the mask hides on average: two products forward,
  // five backward.
  const double product = batch * heads * sequence * sequence * width;
  const double forward = 2 * product / target.flops, backward = 5 * product / target.flops;
  // One block of keys, and one of values; in the backward with the gradients of both.
  const double bytes = 2 * batch * sequence * kv_heads * width * static_cast<double>(ByteSize(k.dtype));
  const cost::Link link = cost::LinkOf(mesh.Alias("cp"), mesh, target);
  AttentionSeconds out;
  // Keys and values gathered in each pass, their gradients reduced and scattered, in rings of cp - 1 hops.
  out.gather = cp * (forward + backward) + link.Seconds(6 * (cp - 1), 3 * (cp - 1) * bytes);
  // Each step waits for its compute or its exchange, whichever is longer; the last step of the forward
  // exchanges nothing, that of the backward gradients alone, which nothing hides. Outputs are merged cp - 1
  // times.
  const double merge =
      4 * batch * sequence * heads * width * static_cast<double>(ByteSize(q.dtype)) / target.bytes_per_second;
  out.ring = (cp - 1) * (std::max(forward, link.Seconds(2, bytes)) + merge) + forward +
             (cp - 1) * std::max(backward, link.Seconds(4, 2 * bytes)) + backward + link.Seconds(2, bytes);
  return out;
}

bool AsksForContextParallel(const PassContext& context) { return context.strategy.cp != 1; }

absl::StatusOr<bool> ContextParallel(Program& program, const PassContext& context) {
  const strategy::Strategy& s = context.strategy;
  Function* step = program.module->Find(FunctionKind::kStep);
  if (!AsksForContextParallel(context)) return false;
  int64_t length = 0, groups = 0;
  for (const Node* a : step->args()) {
    if (a->binding.kind == Binding::kBatch && a->type().rank() > 0) length = a->type().dims.back();
  }
  for (const auto& n : step->body()) {
    if (const int64_t c = RoutingGroups(*n)) groups = c;
  }
  const int64_t blocks = 2 * s.cp;
  if (length % s.cp != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(kPass, ": cp = ", s.cp, " does not divide the sequence of ", length));
  }
  if (s.cp_order == strategy::CpOrder::kZigzag && length % blocks != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        kPass, ": cp_order = zigzag cuts the sequence into 2 cp = ", blocks,
        " blocks, which do not divide its ", length,
        " tokens; legal here: cp_order = contiguous or auto, or a sequence of a multiple of ", blocks));
  }
  bool zigzag = s.cp_order == strategy::CpOrder::kZigzag;
  std::string why;
  if (s.cp_order == strategy::CpOrder::kAuto) {
    const bool cuts = groups > 0 && groups % blocks != 0 && groups % s.cp == 0;
    zigzag = length % blocks == 0 && !cuts;
    if (!zigzag) {
      why = cuts ? absl::StrCat(" (a zig-zag would cut the ", groups, " routing groups)")
                 : absl::StrCat(" (", blocks, " does not divide ", length, ")");
    }
  }
  if (zigzag) RETURN_IF_ERROR(Order(step, s.cp).Apply());

  const std::vector<Node*> attention = step->NodesOf("nn.attention");
  bool ring = s.cp_attention == strategy::CpAttention::kRing && !attention.empty();
  std::string costs;
  if (!attention.empty()) {
    const AttentionSeconds t = EstimateAttention(*attention[0], s, program.module->mesh(), context.target);
    if (s.cp_attention == strategy::CpAttention::kAuto) ring = t.ring < t.gather;
    costs = absl::StrFormat(
        "; per layer and microbatch %.3g ms as a ring, %.3g ms gathered, by the target's figures",
        t.ring * 1e3, t.gather * 1e3);
  }
  if (ring) RETURN_IF_ERROR(Ring(step, s.cp).Apply());
  context.Note(absl::StrCat("sequence ", zigzag ? "in zig-zag" : "contiguous", why, " over ", s.cp,
                            " ranks, attention ", ring ? "as a ring" : "with gathered keys", costs));
  return zigzag || ring;
}

}  // namespace moe::passes
