#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/state.h"
#include "moe/passes/copy_nodes.h"
#include "moe/passes/stages/partition_stages.h"

namespace moe::passes {
namespace {

constexpr char kPass[] = "partition-stages";

bool LivesOn(const State& state, int64_t stage) {
  for (const int64_t s : StagesOf(state)) {
    if (s == stage) return true;
  }
  return false;
}

const State* StateOfArg(const Module& module, const Node& arg) {
  return arg.binding.kind == Binding::kState ? module.FindState(arg.binding.name) : nullptr;
}

// States that a value is computed from.
std::set<const State*> Sources(const Module& module, Value value) {
  std::set<const State*> out;
  absl::flat_hash_set<const Node*> seen;
  std::vector<Node*> stack = {value.node};
  while (!stack.empty()) {
    Node* n = stack.back();
    stack.pop_back();
    if (!seen.insert(n).second) continue;
    if (n->Is("arg")) {
      if (const State* s = StateOfArg(module, *n)) out.insert(s);
    }
    for (const Value& v : n->operands()) stack.push_back(v.node);
  }
  return out;
}

// One stage's part of a function whose arguments are states and scalars.
class StagePart {
 public:
  StagePart(Module& module, const Function& whole, int stage, int stages)
      : module_(module),
        whole_(whole),
        stage_(stage),
        stages_(stages),
        part_(module.AddFunction({whole.role().kind, stage})),
        builder_(part_) {
    builder_.phase = Phase::kUpdate;
    builder_.provenance.pass = kPass;
  }

  absl::Status Build() {
    for (Node* a : whole_.args()) {
      const State* state = StateOfArg(module_, *a);
      if (state != nullptr && !LivesOn(*state, stage_)) continue;
      map_[a->result()] = part_->AddArg(a->result_name(), a->type(), a->binding, a->attributes());
    }
    RETURN_IF_ERROR(ReduceSharedGradients());
    RETURN_IF_ERROR(ReduceNorm());
    for (int i = 0; i < whole_.num_results(); ++i) {
      const Binding& binding = whole_.result_binding(i);
      if (binding.kind == Binding::kState) {
        const State* state = module_.FindState(binding.name);
        if (state == nullptr || !LivesOn(*state, stage_)) continue;
      } else if (!Reports(whole_.result(i))) {
        continue;  // a report that every stage could give: one does
      }
      ASSIGN_OR_RETURN(const Value v, Copy(whole_.result(i)));
      part_->AddResult(v, binding);
    }
    const std::vector<Node*> args = part_->args();
    for (Node* a : args) {
      if (!a->HasUses()) part_->EraseArg(a);
    }
    return absl::OkStatus();
  }

 private:
  // Accumulators of a model that is there twice are two sums, and both are reported: the host adds them up.
  bool Reports(Value v) const {
    const std::set<const State*> sources = Sources(module_, v);
    for (const State* s : sources) {
      if (AttrString(s->attributes, "kind") != "accumulator") return Owner(v) == stage_;
    }
    if (sources.empty() || DependsOnNorm(v)) return Owner(v) == stage_;
    return std::all_of(sources.begin(), sources.end(), [&](const State* s) { return LivesOn(*s, stage_); });
  }

  // Where a value that is no state is reported: after the norm's reduction every stage has it, so the first;
  // before, the stage of its states.
  int64_t Owner(Value v) const {
    if (DependsOnNorm(v)) return 0;
    const std::set<const State*> sources = Sources(module_, v);
    int64_t owner = 0;
    for (const State* s : sources) owner = std::max(owner, StagesOf(*s).front());
    return sources.empty() ? 0 : owner;
  }

  bool DependsOnNorm(Value v) const {
    absl::flat_hash_set<const Node*> seen;
    std::vector<const Node*> stack = {v.node};
    while (!stack.empty()) {
      const Node* n = stack.back();
      stack.pop_back();
      if (!seen.insert(n).second) continue;
      if (n->Is("optim.clip")) return true;
      for (const Value& operand : n->operands()) stack.push_back(operand.node);
    }
    return false;
  }

  absl::StatusOr<Value> Copy(Value v) {
    return CopySlice(v, part_, &map_, [&](Node* arg) -> absl::StatusOr<Value> {
      return absl::InternalError(absl::StrCat(kPass, ": %", v.name(), " of @", whole_.name(), " on stage ",
                                              stage_, " needs %", arg->result_name(),
                                              ", which lives elsewhere"));
    });
  }

  absl::Status ReduceSharedGradients() {
    for (Node* a : whole_.args()) {
      const State* state = StateOfArg(module_, *a);
      if (state == nullptr || AttrString(state->attributes, "kind") != "gradient") continue;
      const std::vector<int64_t> stages = StagesOf(*state);
      if (stages.size() < 2 || !LivesOn(*state, stage_)) continue;
      builder_.provenance.reason = absl::StrCat("gradient shared by stages, for @", state->name);
      ASSIGN_OR_RETURN(map_[a->result()],
                       StageReduce(map_.at(a->result()), stages, a->result_name() + ".shared"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Value> StageReduce(Value v, std::vector<int64_t> stages, const std::string& name) {
    ASSIGN_OR_RETURN(Node * n, builder_.CreateNode(
                                   "comm.stage_reduce", {v},
                                   {{"stages", std::move(stages)}, {"reduction", std::string("sum")}}, name));
    n->queue = Queue::kComm;
    return n->result();
  }

  // optim.clip wants the squared norm of all stages: the sum over stages of what each owns.
  absl::Status ReduceNorm() {
    const std::vector<Node*> clips = whole_.NodesOf("optim.clip");
    if (clips.empty()) return absl::OkStatus();
    if (clips.size() > 1)
      return absl::InternalError(absl::StrCat(kPass, ": several optim.clip in @", whole_.name()));
    const Value norm = clips[0]->operand(0);
    std::vector<Value> terms;
    CollectTerms(norm, &terms);
    Value sum;
    for (const Value& term : terms) {
      const std::set<const State*> sources = Sources(module_, term);
      if (sources.empty() || StagesOf(**sources.begin()).front() != stage_) continue;
      ASSIGN_OR_RETURN(const Value mine, Copy(term));
      builder_.provenance.reason = "squared norm of this stage";
      if (!sum) {
        sum = mine;
      } else {
        ASSIGN_OR_RETURN(sum, builder_.Create("math.add", {sum, mine}, {}, "norm_squared"));
      }
    }
    if (!sum) {
      builder_.provenance.reason = "this stage owns no gradient";
      ASSIGN_OR_RETURN(
          sum, builder_.Create("math.constant", {},
                               {{"value", 0.0}, {"dtype", std::string(DTypeName(norm.type().dtype))}}));
    }
    std::vector<int64_t> all;
    for (int s = 0; s < stages_; ++s) all.push_back(s);
    builder_.provenance.reason = "squared norm of all stages";
    ASSIGN_OR_RETURN(map_[norm], StageReduce(sum, all, "norm_squared.all"));
    return absl::OkStatus();
  }

  static void CollectTerms(Value root, std::vector<Value>* terms) {
    // Chains of additions are as long as there are parameters: no recursion.
    std::vector<Value> stack = {root};
    while (!stack.empty()) {
      const Value v = stack.back();
      stack.pop_back();
      if (v.node->Is("math.add") && v.HasOneUse()) {
        for (int i = v.node->num_operands() - 1; i >= 0; --i) stack.push_back(v.node->operand(i));
      } else {
        terms->push_back(v);
      }
    }
  }

  Module& module_;
  const Function& whole_;
  const int stage_, stages_;
  Function* part_;
  Builder builder_;
  ValueMap map_;
};

}  // namespace

absl::Status PartitionUpdate(Module& module, int stages) {
  for (const FunctionKind kind : {FunctionKind::kUpdate, FunctionKind::kReport}) {
    Function* whole = module.Find(kind);
    if (whole == nullptr) continue;
    if (stages == 1) {
      whole->SetRole({kind, 0});
      continue;
    }
    for (int s = 0; s < stages; ++s) RETURN_IF_ERROR(StagePart(module, *whole, s, stages).Build());
    module.RemoveFunction(FunctionRole(kind).Name());
  }
  return absl::OkStatus();
}

}  // namespace moe::passes
