#include "moe/passes/checkpoint.h"

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/cost/node_cost.h"
#include "moe/ir/registry.h"
#include "moe/ir/state.h"
#include "moe/passes/copy_nodes.h"
#include "moe/passes/layer_cuts.h"
#include "moe/passes/split_phases.h"

namespace moe {
namespace {

constexpr char kPass[] = "checkpoint";
constexpr int64_t kSmall = 64;  // bytes; a saved value takes as many anyway

// Why a node may not be computed twice; empty if it may.
std::string WhyNot(const OpDef& op) {
  if (op.Has(kDecision))
    return "it decides routes, and deciding twice may decide differently: its results are saved";
  if (op.Has(kStateful)) return "it updates state, which would happen twice";
  if (op.Has(kRandom)) return "it draws random numbers without a key of its own";
  return "";
}

// An argument that holds the same in the backward as in the forward of one microbatch.
bool Stable(const Node& arg, const Module& module) {
  if (BindingKind(arg.attributes()) != "state") return true;
  const State* s = module.FindState(BindingName(arg.attributes()));
  if (s == nullptr) return false;
  const std::string kind = AttrString(s->attributes, "kind");
  return kind == "parameter" || kind == "expert_map";
}

bool Cheap(const Node& n) {
  if (n.op().Has(kCollective)) return false;
  for (const char* dear : {"nn.attention", "nn.attention_merge", "nn.head_stats", "nn.embed"}) {
    if (n.Is(dear)) return false;
  }
  return !n.Is("math.einsum") || n.num_operands() == 1;
}

class Recomputer {
 public:
  Recomputer(Function* chunk, const PassContext& context, std::string also)
      : f_(chunk), mesh_(chunk->module()->mesh()), context_(context), also_(std::move(also)) {}

  void Run(bool full) {
    for (const Value& v : ResidualsOf(*f_)) residuals_.insert(v);
    bytes_before = ResidualBytes();
    for (const auto& n : f_->body()) flops += NodeFlops(*n, mesh_);
    full ? ChooseFull() : ChooseSelective();
    for (Node* n : f_->Nodes()) {
      if (n->phase != Phase::kBackward) continue;
      for (int i = 0; i < n->num_operands(); ++i) {
        const Value v = n->operand(i);
        if (recompute_.count(v.node)) n->SetOperand(i, Again(v, n));
      }
    }
    bytes_after = ResidualBytes();
  }

  int64_t bytes_before = 0, bytes_after = 0;
  double flops = 0, extra_flops = 0;
  int clones = 0;

 private:
  int64_t Bytes(Value v) const { return StorageOf(v.type(), mesh_, context_.strategy.overload).bytes; }

  int64_t ResidualBytes() const {
    int64_t bytes = 0;
    for (const Value& v : ResidualsOf(*f_)) bytes += Bytes(v);
    return bytes;
  }

  void ChooseSelective() {
    for (const auto& node : f_->body()) {
      Node* n = node.get();
      if (n->phase != Phase::kForward || !WhyNot(n->op()).empty()) continue;
      if (!Cheap(*n) && n->op_name() != also_) continue;
      bool available = true;
      for (const Value& v : n->operands()) {
        available =
            available && (v.node->Is("arg") ? Stable(*v.node, *f_->module())
                                            : residuals_.count(v) > 0 || recompute_.count(v.node) > 0);
      }
      int64_t saved = 0;
      bool reads_residual = false;
      for (int r = 0; r < n->num_results(); ++r) {
        if (residuals_.count(n->result(r))) {
          saved += Bytes(n->result(r));
          reads_residual = true;
        }
      }
      // A value that the backward does not read may still stand between one that it reads and what is kept.
      if (available && (!reads_residual || saved > kSmall)) recompute_.insert(n);
    }
  }

  // The value is of the residual stream, perhaps in another placement.
  bool OfStream(const Node* n) const {
    while (absl::StartsWith(n->op_name(), "comm.")) n = n->operand(0).node;
    return n->StringOr("tag", "") == "residual_stream";
  }

  static bool SamePart(absl::string_view a, absl::string_view b) {
    const ScopePart x = PartOfScope(a), y = PartOfScope(b);
    return x.kind == y.kind && x.layer == y.layer;
  }

  // Between two layers: read by a node of another part of the model than the one that made it.
  bool LayerInput(const Node* n) const {
    if (!OfStream(n)) return false;
    const Node* origin = n;
    while (absl::StartsWith(origin->op_name(), "comm.") && !origin->operand(0).node->Is("arg")) {
      origin = origin->operand(0).node;
    }
    for (const Use& u : n->uses()) {
      if (u.user->Is("return")) return true;
      if (u.user->phase == Phase::kForward && !absl::StartsWith(u.user->op_name(), "comm.") &&
          !SamePart(u.user->scope, origin->scope)) {
        return true;
      }
    }
    return false;
  }

  void ChooseFull() {
    std::set<const Node*> bound;  // to this moment: reads a sum so far, or is an update of one
    for (const auto& n : f_->body()) {
      if (n->phase != Phase::kForward) continue;
      bool stable = WhyNot(n->op()).empty();
      for (const Value& v : n->operands()) {
        stable = stable && (v.node->Is("arg") ? Stable(*v.node, *f_->module())
                                              : bound.count(v.node) == 0 || !v.node->op().Has(kStateful));
      }
      if (!stable) bound.insert(n.get());
    }
    std::vector<Node*> work;
    for (const Value& v : residuals_) work.push_back(v.node);
    while (!work.empty()) {
      Node* n = work.back();
      work.pop_back();
      if (bound.count(n) || recompute_.count(n) || PartOfScope(n->scope).kind != ScopePart::kLayer ||
          LayerInput(n)) {
        continue;
      }
      recompute_.insert(n);
      for (const Value& v : n->operands()) {
        if (!v.node->Is("arg")) work.push_back(v.node);
      }
    }
  }

  // The value computed again, before `user` at the latest.
  Value Again(Value v, Node* user) {
    std::vector<std::pair<Node*, int>> stack = {{v.node, 0}};
    while (!stack.empty()) {
      Node* n = stack.back().first;
      if (again_.count(n->result())) {
        stack.pop_back();
        continue;
      }
      if (n->Is("arg") || !recompute_.count(n)) {
        for (int r = 0; r < n->num_results(); ++r) again_[n->result(r)] = n->result(r);
        continue;
      }
      if (stack.back().second < n->num_operands()) {
        stack.push_back({n->operand(stack.back().second++).node, 0});
        continue;
      }
      Node* clone = CopyNode(*n, f_, &again_, user);
      clone->phase = Phase::kBackward;
      clone->provenance = {kPass, absl::StrCat("recomputes %", n->result_name())};
      extra_flops += NodeFlops(*clone, mesh_);
      ++clones;
    }
    return again_.at(v);
  }

  Function* f_;
  const Mesh& mesh_;
  const PassContext& context_;
  const std::string also_;
  std::set<Value> residuals_;
  std::set<Node*> recompute_;  // forward nodes
  ValueMap again_;             // forward value -> what the backward reads instead
};

}  // namespace

absl::StatusOr<bool> Checkpoint(Program& program, const PassContext& context) {
  const std::string mode = context.OptionOr("mode", context.strategy.checkpoint);
  const std::string also = context.OptionOr("recompute", "");
  if (mode != "none" && mode != "selective" && mode != "full") {
    return absl::InvalidArgumentError(
        absl::StrCat(kPass, ": unknown mode '", mode, "'; there are none, selective and full"));
  }
  if (!also.empty()) {
    const OpDef* op = Ops().Find(also);
    if (op == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(kPass, ": recompute=", also, ": no such op; the nearest is ", Ops().Nearest(also)));
    }
    if (const std::string why = WhyNot(*op); !why.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(kPass, ": ", also, " is never recomputed: ", why));
    }
  }
  if (mode == "none") return false;
  const std::vector<Function*> chunks = ChunkFunctions(*program.module);
  if (chunks.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        kPass, " wants functions @chunk0, ...: it runs after partition-stages and before split-phases"));
  }
  int64_t before = 0, after = 0;
  double percent = 0;
  int clones = 0;
  for (Function* f : chunks) {
    Recomputer r(f, context, also);
    r.Run(mode == "full");
    clones += r.clones;
    if (r.bytes_before < before) continue;
    before = r.bytes_before;
    after = r.bytes_after;
    percent = r.flops > 0 ? 100 * r.extra_flops / r.flops : 0;
  }
  const auto mib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  context.Note(absl::StrFormat("%s: residuals %.1f -> %.1f MiB per microbatch, +%.1f%% flops", mode,
                               mib(before), mib(after), percent));
  return clones > 0;
}

}  // namespace moe
