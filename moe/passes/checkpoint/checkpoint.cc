#include "moe/passes/checkpoint/checkpoint.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/ir/registry.h"
#include "moe/ir/scope.h"
#include "moe/passes/checkpoint/checkpoint_auto.h"
#include "moe/passes/checkpoint/recompute.h"
#include "moe/passes/schedule/split_phases.h"
#include "moe/strategy/checkpoint_policy.h"

namespace moe::passes {
namespace {

constexpr int64_t kSmall = 64;  // bytes; a saved value takes as many anyway

bool Cheap(const Node& n) {
  if (n.op().Has(kCollective)) return false;
  for (const char* dear : {"nn.attention", "nn.attention_merge", "nn.head_stats", "nn.embed"}) {
    if (n.Is(dear)) return false;
  }
  return !n.Is("math.einsum") || n.num_operands() == 1;
}

// Which nodes of one chunk the policies other than auto compute again.
class Choice {
 public:
  Choice(const Function& chunk, double overload)
      : f_(chunk), overload_(overload), bound_(BoundToTheForward(chunk)) {
    for (const Value& v : ResidualsOf(f_)) residuals_.insert(v);
  }

  std::set<Node*> Of(const strategy::CheckpointPolicy& policy) {
    if (policy.mode == strategy::CheckpointMode::kFull) ChooseFull();
    const bool selective = policy.mode == strategy::CheckpointMode::kSelective;
    ChooseWhereAvailable([&](const Node& n) {
      return (selective && Cheap(n)) ||
             std::find(policy.ops.begin(), policy.ops.end(), n.op_name()) != policy.ops.end();
    });
    return std::move(recompute_);
  }

 private:
  // Nodes of the wanted kinds whose operands are there anyway, and that save bytes.
  template <typename Wanted>
  void ChooseWhereAvailable(Wanted wanted) {
    for (const auto& node : f_.body()) {
      Node* n = node.get();
      if (n->phase != Phase::kForward || !wanted(*n) || bound_.count(n) > 0) continue;
      bool available = true;
      for (const Value& v : n->operands()) {
        available =
            available && (v.node->Is("arg") ? IsStable(*v.node, *f_.module())
                                            : residuals_.count(v) > 0 || recompute_.count(v.node) > 0);
      }
      int64_t saved = 0;
      bool reads_residual = false;
      for (int r = 0; r < n->num_results(); ++r) {
        if (residuals_.count(n->result(r))) {
          saved += StorageOf(n->type(r), f_.module()->mesh(), overload_).bytes;
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
    const Scope x = ParseScope(a), y = ParseScope(b);
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
    std::vector<Node*> work;
    for (const Value& v : residuals_) work.push_back(v.node);
    while (!work.empty()) {
      Node* n = work.back();
      work.pop_back();
      if (bound_.count(n) || recompute_.count(n) || ParseScope(n->scope).kind != Scope::kLayer ||
          LayerInput(n)) {
        continue;
      }
      recompute_.insert(n);
      for (const Value& v : n->operands()) {
        if (!v.node->Is("arg")) work.push_back(v.node);
      }
    }
  }

  const Function& f_;
  const double overload_;
  const std::set<const Node*> bound_;
  std::set<Value> residuals_;
  std::set<Node*> recompute_;  // forward nodes
};

std::string Mode(const PassContext& context) {
  return context.OptionOr("mode", context.strategy.checkpoint.ToString());
}

}  // namespace

bool AsksForCheckpoint(const PassContext& context) {
  const absl::StatusOr<strategy::CheckpointPolicy> policy = strategy::ParseCheckpointPolicy(Mode(context));
  return !policy.ok() || !policy->Is(strategy::CheckpointMode::kNone);
}

absl::StatusOr<bool> Checkpoint(Program& program, const PassContext& context) {
  const std::string mode = Mode(context);
  ASSIGN_OR_RETURN(const strategy::CheckpointPolicy policy, strategy::ParseCheckpointPolicy(mode));
  if (!AsksForCheckpoint(context)) return false;
  const std::vector<Function*> chunks = ChunkFunctions(*program.module);
  const bool automatic = policy.mode == strategy::CheckpointMode::kAuto;
  AutoChoice chosen;
  if (automatic) {
    ASSIGN_OR_RETURN(chosen, ChooseAutomatically(program, context));
  }
  const double overload = context.strategy.overload;
  int64_t before = 0, after = 0;
  double percent = 0;
  int clones = 0;
  for (Function* f : chunks) {
    const int64_t bytes = ResidualBytes(*f, overload);
    const RecomputeStats stats =
        Recompute(f, automatic ? Select(*f, chosen.nodes[f->name()]) : Choice(*f, overload).Of(policy));
    clones += stats.clones;
    if (bytes < before) continue;
    before = bytes;
    after = ResidualBytes(*f, overload);
    percent = stats.flops > 0 ? 100 * stats.extra_flops / stats.flops : 0;
  }
  const auto mib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  context.Note(absl::StrFormat("%s: residuals %.1f -> %.1f MiB per microbatch, +%.1f%% flops", mode,
                               mib(before), mib(after), percent));
  if (automatic) context.Note(chosen.note);
  return clones > 0;
}

}  // namespace moe::passes
