#include "moe/passes/expert_slots.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/registry.h"
#include "moe/ir/state.h"
#include "moe/ir/stored_rows.h"
#include "moe/passes/resize_states.h"

namespace moe::passes {
namespace {

constexpr char kPass[] = "expert-slots";

// Operand of that name, or -1.
int OperandNamed(const Node& n, absl::string_view name) {
  const std::vector<std::string>& names = n.op().operand_names;
  const auto it = std::find(names.begin(), names.end(), name);
  return it == names.end() ? -1 : static_cast<int>(it - names.begin());
}

class Rewriter {
 public:
  Rewriter(Module& module, Function* step, StoredRows rows)
      : module_(module), step_(step), rows_(std::move(rows)), slots_(rows_.row.size()) {}

  absl::Status Run() {
    for (Node* n : step_->NodesOf("moe.dispatch")) {
      if (n->phase == Phase::kForward) RETURN_IF_ERROR(MapChoices(n));
    }
    for (const auto& state : module_.states()) {
      if (AttrString(state->attributes, "class") == "expert") parameters_.push_back(state.get());
    }
    for (State* p : parameters_) RETURN_IF_ERROR(Store(p));
    RETURN_IF_ERROR(InferTypesAgain(*step_));
    if (Function* update = module_.Find(FunctionKind::kUpdate)) {
      if (rows_.HasReplicas()) RETURN_IF_ERROR(SumReplicas(update));
      RETURN_IF_ERROR(InferTypesAgain(*update));
    }
    return absl::OkStatus();
  }

 private:
  // The table of the layer that `dispatch` is of, and everything that takes its choices.
  absl::Status MapChoices(Node* dispatch) {
    if (dispatch->Int("experts") != rows_.logical) {
      return absl::InvalidArgumentError(absl::StrCat(kPass, ": %", dispatch->result_name(), " has ",
                                                     dispatch->Int("experts"), " experts, other layers ",
                                                     rows_.logical));
    }
    const std::string name = absl::StrCat(dispatch->scope, ".expert_map");
    if (tables_.count(dispatch->scope)) {
      return absl::InvalidArgumentError(absl::StrCat(kPass, ": several moe.dispatch in ", dispatch->scope));
    }
    tables_[dispatch->scope] = name;
    State table;
    table.name = name;
    table.type = Type(DType::kS32, {slots_});
    table.attributes = {{"kind", std::string("expert_map")},
                        {"experts", rows_.logical},
                        {"slots", rows_.row},
                        {"replicas", rows_.HasReplicas()}};
    const Value map = step_->AddArg(name, table.type, {Binding::kState, name});
    module_.AddState(std::move(table));

    const Value expert = dispatch->operand(OperandNamed(*dispatch, "expert")),
                slot = dispatch->operand(OperandNamed(*dispatch, "slot"));
    Builder b = Builder::After(slot.node);
    b.scope = dispatch->scope;
    b.provenance = {kPass, "experts -> expert slots"};
    ASSIGN_OR_RETURN(Node * chosen, b.CreateNode("moe.choose_replicas", {expert, slot, map}, {},
                                                 absl::StrCat(dispatch->scope, ".replica")));
    const std::vector<Use> uses = expert.node->uses(expert.index);
    for (const Use& use : uses) {
      Node* n = use.user;
      const int other = n == chosen || n == step_->return_node() ? -1 : OperandNamed(*n, "slot");
      if (other < 0 || use.operand != OperandNamed(*n, "expert") || n->operand(other) != slot) continue;
      n->SetOperand(use.operand, chosen->result(0));
      n->SetOperand(other, chosen->result(1));
      if (n->Has("experts")) n->Set("experts", slots_);
    }
    return absl::OkStatus();
  }

  // A parameter, its gradient and its moments.
  absl::Status Store(State* parameter) {
    std::string table;
    if (const Node* arg = FindArg(*step_, Binding::kState, parameter->name)) {
      for (const Use& use : arg->uses()) {
        if (const auto it = tables_.find(use.user->scope); it != tables_.end()) table = it->second;
      }
    }
    if (table.empty() || parameter->type.rank() != 3 || parameter->type.dims[0] != rows_.logical) {
      return absl::InvalidArgumentError(
          absl::StrCat(kPass, ": the expert parameter @", parameter->name,
                       " is not used beside a moe.dispatch, or is not [experts, ., .]"));
    }
    for (const auto& state : module_.states()) {
      if (state.get() != parameter && AttrString(state->attributes, "of") != parameter->name) continue;
      state->attributes["expert_map"] = table;
      ResizeState(module_, state.get(), slots_);
    }
    return absl::OkStatus();
  }

  absl::Status SumReplicas(Function* update) {
    std::map<std::string, Value> maps;
    for (const auto& state : module_.states()) {
      if (AttrString(state->attributes, "kind") != "gradient") continue;
      const std::string table = AttrString(state->attributes, "expert_map");
      Node* arg = table.empty() ? nullptr : FindArg(*update, Binding::kState, state->name);
      if (arg == nullptr) continue;
      Value& map = maps[table];
      if (!map) map = update->AddArg(table, module_.FindState(table)->type, {Binding::kState, table});
      const std::vector<Use> uses = arg->uses();
      Node* first = nullptr;
      for (const Use& use : uses) {
        if (use.user == update->return_node()) continue;
        if (first == nullptr || update->ComesBefore(use.user, first)) first = use.user;
      }
      if (first == nullptr) continue;
      Builder b = Builder::Before(first);
      b.provenance = {kPass, "replicas of an expert have one gradient"};
      ASSIGN_OR_RETURN(const Value sum,
                       b.Create("moe.sum_replicas", {arg->result(), map},
                                {{"experts", rows_.logical}, {"tag", std::string("replica_sum")}},
                                absl::StrCat(state->name, ".by_expert")));
      Value copies;
      for (const Use& use : uses) {
        if (!use.user->Is("optim.adamw")) {
          use.user->SetOperand(use.operand, sum);
          continue;
        }
        if (!copies) {
          b = Builder::Before(use.user);
          b.provenance = {kPass, "replicas of an expert have one gradient"};
          ASSIGN_OR_RETURN(copies, b.Create("moe.copy_to_replicas", {sum, map}, {{"expert_slots", slots_}},
                                            absl::StrCat(state->name, ".by_slot")));
        }
        use.user->SetOperand(use.operand, copies);
      }
    }
    return absl::OkStatus();
  }

  Module& module_;
  Function* const step_;
  const StoredRows rows_;
  const int64_t slots_;
  std::map<std::string, std::string> tables_;  // by scope
  std::vector<State*> parameters_;
};

std::string Describe(const StoredRows& rows) {
  std::vector<std::string> words;
  for (const int64_t e : rows.row) {
    if (words.size() == 64) {
      words.push_back("...");
      break;
    }
    words.push_back(e < 0 ? "-" : absl::StrCat(e));
  }
  return absl::StrCat(rows.logical, " experts in ", rows.row.size(), " slots: ", absl::StrJoin(words, " "));
}

}  // namespace

bool AsksForExpertSlots(const PassContext& context) {
  return context.strategy.expert_slots != 0 || !context.strategy.expert_map.empty();
}

absl::StatusOr<bool> StoreByExpertSlots(Program& program, const PassContext& context) {
  const strategy::Strategy& strategy = context.strategy;
  if (!AsksForExpertSlots(context)) return false;
  Module& module = *program.module;
  Function* step = module.Find(FunctionKind::kStep);
  const std::vector<Node*> dispatches = step->NodesOf("moe.dispatch");
  if (dispatches.empty()) {
    return absl::InvalidArgumentError("the strategy has expert slots, but the model has no experts");
  }
  StoredRows rows;
  rows.logical = dispatches[0]->Int("experts");
  ASSIGN_OR_RETURN(rows.row, strategy::ExpertMapOf(strategy, rows.logical));
  if (rows.IsIdentity()) return false;
  context.Note(Describe(rows));
  RETURN_IF_ERROR(Rewriter(module, step, std::move(rows)).Run());
  return true;
}

}  // namespace moe::passes
