#include "moe/passes/memory/plan_memory.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "moe/base/integers.h"
#include "moe/base/quantities.h"
#include "moe/base/status.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/registry.h"
#include "moe/ir/state.h"
#include "moe/ir/state_layout.h"
#include "moe/passes/memory/frame_layout.h"
#include "moe/passes/stages/partition_stages.h"

namespace moe::passes {
namespace {

constexpr int64_t kAlignment = 64;

// (kind of binding, name) -> place within a residual set.
using SavedValues = std::map<std::pair<Binding::Kind, std::string>, BufferRef>;

// One function of a stage.
class FunctionPlanner {
 public:
  FunctionPlanner(const Function& f, const Mesh& mesh, const PassContext& context, const StageMemory& stage)
      : f_(f), mesh_(mesh), context_(context), stage_(stage) {}

  // `residuals`: where the chunk's residual values lie within a set, by kind of binding and name.
  absl::StatusOr<FunctionMemory> Plan(const SavedValues& residuals) {
    Number();
    RETURN_IF_ERROR(PlaceArguments(residuals));
    RETURN_IF_ERROR(PlaceResults(residuals));
    RETURN_IF_ERROR(PlaceNodes());
    RETURN_IF_ERROR(CheckStates());
    LayOutFrame();
    FindWaits();
    return std::move(memory_);
  }
  int64_t spill_bytes() const { return spill_bytes_; }

 private:
  // Values that share bytes: one, or a chain of updates in place.
  struct Group {
    BufferRef ref;
    std::string state;  // of this state's bytes
    bool placed = false;
    int first = std::numeric_limits<int>::max(), last = -1;
    std::vector<Touch> touches;
  };

  absl::Status Error(Value v, absl::string_view what) const {
    return absl::InternalError(absl::StrCat("plan-memory: %", v.name(), " in @", f_.name(), ": ", what));
  }

  void Number() {
    int i = 0;
    for (const auto& n : f_.body()) {
      position_[n.get()] = i++;
      nodes_.push_back(n.get());
    }
    position_[f_.return_node()] = i;
    for (int r = 0; r < f_.num_results(); ++r) {
      if (f_.result_binding(r).kind == Binding::kState) {
        written_.insert(f_.result_binding(r).name);
      }
    }
  }

  int NewGroup(Value v, BufferRef ref, bool placed) {
    const LocalStorage storage = StorageOf(v.type(), mesh_, context_.strategy.overload);
    ref.bytes = storage.bytes;
    if (!placed && storage.spill_bytes > 0) {
      ref.spill_offset = spill_bytes_;
      spill_bytes_ += RoundUp(storage.spill_bytes, kAlignment);
    }
    groups_.push_back({ref, "", placed});
    group_of_[v] = static_cast<int>(groups_.size()) - 1;
    return group_of_[v];
  }

  absl::Status PlaceArguments(const SavedValues& residuals) {
    for (Node* a : f_.args()) {
      const Value v = a->result();
      const auto& [kind, name, peer] = a->binding;
      BufferRef ref;
      if (kind == Binding::kState) {
        auto it = stage_.states.find(name);
        if (it == stage_.states.end())
          return Error(v, absl::StrCat("state @", name, " does not live on this stage"));
        ref = it->second;
      } else if (kind == Binding::kBatch || kind == Binding::kScalar) {
        ref = stage_.inputs.at(InputName(a->binding));
      } else if (kind == Binding::kBoundary) {
        ref.space = Space::kBoundary;
      } else if (kind == Binding::kFuture) {
        auto it = stage_.futures.find(name);
        if (it == stage_.futures.end()) return Error(v, "no exchange of this stage writes this future");
        ref = it->second;
      } else if (kind == Binding::kResidual || kind == Binding::kWeightResidual) {
        auto it = residuals.find({kind, name});
        if (it == residuals.end()) {
          return Error(v, absl::StrCat("no ", kind == Binding::kResidual ? "forward" : "input gradient",
                                       " saves this residual"));
        }
        ref = it->second;
      } else {
        return Error(v, absl::StrCat("an argument of kind '", BindingKindName(kind), "' has no place"));
      }
      const int group = NewGroup(v, ref, true);
      if (kind == Binding::kState) state_group_[groups_[group].state = name] = group;
    }
    return absl::OkStatus();
  }

  // Results with a place of their own: what is sent on or saved.
  absl::Status PlaceResults(const SavedValues& residuals) {
    for (int r = 0; r < f_.num_results(); ++r) {
      const Binding& binding = f_.result_binding(r);
      const bool residual = binding.kind == Binding::kResidual || binding.kind == Binding::kWeightResidual;
      if (binding.kind != Binding::kBoundary && binding.kind != Binding::kFuture && !residual) continue;
      const Value v = f_.result(r);
      if (group_of_.count(v)) {
        return Error(v, absl::StrCat("bound twice, or an argument, as a ", BindingKindName(binding.kind)));
      }
      BufferRef ref;
      ref.space = Space::kBoundary;
      if (binding.kind == Binding::kFuture) ref = stage_.futures.at(binding.name);
      if (residual) ref = residuals.at({binding.kind, binding.name});
      NewGroup(v, ref, true);
    }
    return absl::OkStatus();
  }

  // True if a node after `n` reads what is in the group's bytes now.
  bool ReadAfter(int group, const Node* n) const {
    for (const auto& [v, g] : group_of_) {
      if (g != group) continue;
      for (const Use& u : v.node->uses(v.index)) {
        if (!u.user->Is("return") && position_.at(u.user) > position_.at(n)) return true;
        // Handed to the host at the end: it must not be overwritten before.
        if (u.user->Is("return") && f_.result_binding(u.operand).kind != Binding::kState) return true;
      }
    }
    return false;
  }

  std::string StateBoundTo(Value v) const {
    for (const Use& u : v.node->uses(v.index)) {
      if (u.user->Is("return") && f_.result_binding(u.operand).kind == Binding::kState) {
        return f_.result_binding(u.operand).name;
      }
    }
    return "";
  }

  // The group of the operand that result `r` takes over, or -1.
  int InPlace(Node* n, int r) const {
    if (n->Is("comm.done")) return group_of_.at(n->operand(0));  // lies where it was written
    const int taken = InPlaceOperand(*n, r);
    if (taken < 0) return -1;
    const Value operand = n->operand(taken), result = n->result(r);
    const int group = group_of_.at(operand);
    const Group& g = groups_[group];
    if (!(operand.type() == result.type()) || operand.type().ragged >= 0) return -1;
    if (g.ref.space != Space::kFrame && g.ref.space != Space::kState) return -1;
    if (g.ref.space == Space::kState && written_.count(g.state) == 0) return -1;
    for (int i = 0; i < n->num_operands(); ++i) {
      if (i != taken && group_of_.at(n->operand(i)) == group) return -1;
    }
    return ReadAfter(group, n) ? -1 : group;
  }

  absl::Status PlaceNodes() {
    for (Node* n : nodes_) {
      for (int r = 0; r < n->num_results(); ++r) {
        const Value v = n->result(r);
        if (group_of_.count(v)) continue;
        const Value arrived = ArrivedValue(v);  // where that goes, the exchange writes
        if (arrived != v && group_of_.count(arrived)) {
          group_of_[v] = group_of_.at(arrived);
          continue;
        }
        int group = InPlace(n, r);
        if (group < 0) {
          const std::string state = StateBoundTo(arrived);
          auto it = state_group_.find(state);
          if (state.empty()) {
            NewGroup(v, BufferRef{}, false);
            continue;
          }
          if (it == state_group_.end()) {  // written without being read
            auto place = stage_.states.find(state);
            if (place == stage_.states.end()) {
              return Error(v, absl::StrCat("state @", state, " does not live on this stage"));
            }
            group = NewGroup(v, place->second, true);
            groups_[group].state = state;
            state_group_[state] = group;
            continue;
          }
          group = it->second;
          bool read_here = false;
          for (const Value& operand : n->operands()) read_here = read_here || group_of_.at(operand) == group;
          if (read_here || ReadAfter(group, n)) {
            return Error(v, absl::StrCat("gives @", state, " its new value while the old one is still read"));
          }
        }
        group_of_[v] = group;
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckStates() const {
    for (int r = 0; r < f_.num_results(); ++r) {
      const Binding& binding = f_.result_binding(r);
      if (binding.kind != Binding::kState) continue;
      const Group& g = groups_[group_of_.at(f_.result(r))];
      if (g.state != binding.name) {
        return Error(f_.result(r), absl::StrCat("is bound to @", binding.name, " but lies elsewhere"));
      }
    }
    return absl::OkStatus();
  }

  void LayOutFrame() {
    for (Node* n : nodes_) {
      const int at = position_.at(n);
      for (const Value& v : n->operands()) Touched(group_of_.at(v), at, false);
      for (int r = 0; r < n->num_results(); ++r) Touched(group_of_.at(n->result(r)), at, true);
    }
    for (int r = 0; r < f_.num_results(); ++r) {
      Group& g = groups_[group_of_.at(f_.result(r))];
      g.last = std::max(g.last, position_.at(f_.return_node()));
    }
    std::vector<Lifetime> lifetimes;
    std::vector<BufferRef*> refs;
    for (Group& g : groups_) {
      if (g.placed) continue;
      lifetimes.push_back({g.first, g.last, g.ref.bytes});
      refs.push_back(&g.ref);
    }
    for (Node* n : nodes_) {
      const int64_t bytes = context_.workspace ? context_.workspace(*n, mesh_) : 0;
      if (bytes <= 0) continue;
      BufferRef& ref = memory_.workspace[n->result_name()];
      ref.bytes = bytes;
      if (CrossesFunctions(*n)) {
        ref = stage_.futures.at(FutureScratchName(f_, *n));
        continue;
      }
      int last = position_.at(n);  // an exchange in flight keeps its scratch until it is waited for
      for (int r = 0; n->Is("comm.start") && r < n->num_results(); ++r) {
        last = std::max(last, position_.at(ArrivedValue(n->result(r)).node));
      }
      lifetimes.push_back({position_.at(n), last, bytes});
      refs.push_back(&ref);
    }
    const Layout layout = LayOut(lifetimes, kAlignment);
    for (size_t i = 0; i < refs.size(); ++i) refs[i]->offset = layout.offsets[i];
    memory_.frame_bytes = layout.bytes;
    memory_.live_bytes = layout.lower_bound;
    for (const auto& [v, g] : group_of_) memory_.values[v.name()] = groups_[g].ref;
  }

  void Touched(int group, int at, bool write) {
    Group& g = groups_[group];
    g.first = std::min(g.first, at);
    g.last = std::max(g.last, at);
    g.touches.push_back({at, write});
  }

  void FindWaits() {
    std::vector<int> queues;
    for (const Node* n : nodes_) queues.push_back(static_cast<int>(n->queue));
    std::vector<TouchedBuffer> buffers;
    // Bytes outside the frame belong to one group each, so a group is a space of its own there.
    int space = 1;
    for (const Group& g : groups_) {
      buffers.push_back({g.placed ? space++ : 0, g.placed ? 0 : g.ref.offset,
                         g.placed ? std::max<int64_t>(1, g.ref.bytes) : g.ref.offset + g.ref.bytes,
                         g.touches});
    }
    for (const Node* n : nodes_) {
      auto it = memory_.workspace.find(n->result_name());
      if (it == memory_.workspace.end()) continue;
      const BufferRef& ref = it->second;
      buffers.push_back({ref.space == Space::kFrame ? 0 : space++,
                         ref.offset,
                         ref.offset + ref.bytes,
                         {{position_.at(n), true}}});
    }
    for (const auto& [node, earlier] : WaitsBetweenQueues(queues, buffers)) {
      for (const int e : earlier)
        memory_.waits[nodes_[node]->result_name()].push_back(nodes_[e]->result_name());
    }
  }

  const Function& f_;
  const Mesh& mesh_;
  const PassContext& context_;
  const StageMemory& stage_;
  FunctionMemory memory_;
  std::map<const Node*, int> position_;
  std::vector<Node*> nodes_;
  std::set<std::string> written_;  // states
  std::vector<Group> groups_;
  std::map<Value, int> group_of_;
  std::map<std::string, int> state_group_;
  int64_t spill_bytes_ = 0;
};

class Planner {
 public:
  Planner(Program& program, const PassContext& context)
      : program_(program), module_(*program.module), mesh_(module_.mesh()), context_(context) {}

  absl::Status Run() {
    MemoryPlan& plan = program_.memory;
    plan = MemoryPlan();
    plan.alignment = kAlignment;
    const int stages = static_cast<int>(program_.schedule.table.size());
    plan.stages.resize(stages);
    for (int s = 0; s < stages; ++s) {
      PlaceStates(s);
      PlaceInputs(s);
    }
    for (int s = 0; s < stages; ++s) PlaceFutures(s);
    CountSlots();
    for (int c = 0; c < static_cast<int>(program_.schedule.chunk_stage.size()); ++c) {
      StageMemory& stage = plan.stages[program_.schedule.chunk_stage[c]];
      PlaceResiduals({FunctionKind::kForward, c}, Binding::kResidual, Space::kResidual, &stage,
                     &stage.residuals[c]);
      if (stage.weight_residuals.count(c) == 0) continue;
      PlaceResiduals({FunctionKind::kInputGrad, c}, Binding::kWeightResidual, Space::kWeightResidual, &stage,
                     &stage.weight_residuals[c]);
    }
    for (int s = 0; s < stages; ++s) PlaceBoundaries(s);
    for (const auto& f : module_.functions()) RETURN_IF_ERROR(PlanFunction(*f));
    for (int s = 0; s < stages; ++s) PlaceSpill(s);
    Note();
    return absl::OkStatus();
  }

 private:
  LocalStorage Storage(const Type& t) const { return StorageOf(t, mesh_, context_.strategy.overload); }

  void PlaceStates(int s) {
    StageMemory& stage = program_.memory.stages[s];
    // What outlives a step comes first: programs that share it have it at the same offsets.
    std::vector<const State*> states;
    for (const bool persistent : {true, false}) {
      for (const auto& state : module_.states()) {
        if (IsPersistent(*state) == persistent) states.push_back(state.get());
      }
    }
    for (const State* state : states) {
      const std::vector<int64_t> on = StagesOf(*state);
      if (std::find(on.begin(), on.end(), s) == on.end()) continue;
      const int64_t bytes = Storage(state->type).bytes;
      stage.states[state->name] = {Space::kState, stage.state_bytes, bytes};
      stage.state_bytes += RoundUp(bytes, kAlignment);
      stage.state_bytes_by_kind[AttrString(state->attributes, "kind", "other")] += RoundUp(bytes, kAlignment);
    }
  }

  void PlaceInputs(int s) {
    StageMemory& stage = program_.memory.stages[s];
    std::map<std::string, int64_t> bytes;
    for (const auto& f : module_.functions()) {
      if (program_.schedule.StageOf(f->role()) != s) continue;
      for (const Node* a : f->args()) {
        if (a->binding.kind != Binding::kBatch && a->binding.kind != Binding::kScalar) continue;
        int64_t& most = bytes[InputName(a->binding)];
        most = std::max(most, Storage(a->type()).bytes);
      }
    }
    for (const auto& [name, size] : bytes) {
      stage.inputs[name] = {Space::kInput, stage.input_bytes, size};
      stage.input_bytes += RoundUp(size, kAlignment);
    }
  }

  // What exchanges write that are in flight between functions, and their scratch.
  void PlaceFutures(int s) {
    StageMemory& stage = program_.memory.stages[s];
    const auto place = [&](const std::string& name, int64_t bytes) {
      stage.futures[name] = {Space::kFuture, stage.future_bytes, bytes};
      stage.future_bytes += RoundUp(bytes, kAlignment);
    };
    for (const auto& f : module_.functions()) {
      if (program_.schedule.StageOf(f->role()) != s) continue;
      for (int r = 0; r < f->num_results(); ++r) {
        if (f->result_binding(r).kind != Binding::kFuture) continue;
        place(f->result_binding(r).name, Storage(f->result(r).type()).bytes);
      }
      for (const Node* n : f->NodesOf("comm.start")) {
        const int64_t bytes = CrossesFunctions(*n) && context_.workspace ? context_.workspace(*n, mesh_) : 0;
        if (bytes > 0) place(FutureScratchName(*f, *n), bytes);
      }
    }
  }

  void CountSlots() {
    for (const auto& [_, per_stage] : program_.schedule.actions) {
      for (size_t s = 0; s < per_stage.size(); ++s) {
        StageMemory& stage = program_.memory.stages[s];
        const auto boundary = [&](const std::string& name, int slot) {
          int& count = stage.boundaries[name].count;
          count = std::max(count, slot + 1);
        };
        for (const Action& a : per_stage[s]) {
          if (!a.boundary.empty()) boundary(a.boundary, a.slot);
          for (const auto& [name, slot] : a.boundary_slots) boundary(name, slot);
          const auto set = [&](std::map<int, StageMemory::Slots>& sets, int slot) {
            if (slot < 0) return;
            int& count = sets[a.chunk].count;
            count = std::max(count, slot + 1);
          };
          set(stage.residuals, a.residual_slot);
          set(stage.weight_residuals, a.weight_slot);
        }
      }
    }
  }

  // The set of what a function of the chunk saves for a later one.
  void PlaceResiduals(FunctionRole saved_by, Binding::Kind kind, Space space, StageMemory* stage,
                      StageMemory::Slots* slots) {
    const Function* f = module_.Find(saved_by);
    for (int r = 0; f != nullptr && r < f->num_results(); ++r) {
      if (f->result_binding(r).kind != kind) continue;
      const LocalStorage storage = Storage(f->result(r).type());
      BufferRef ref{space, slots->bytes, storage.bytes};
      slots->bytes += RoundUp(storage.bytes, kAlignment);
      if (storage.spill_bytes > 0) {
        ref.spill_offset = slots->spill_bytes;
        slots->spill_bytes += RoundUp(storage.spill_bytes, kAlignment);
      }
      residuals_[saved_by.index][{kind, f->result_binding(r).name}] = ref;
    }
    slots->offset = stage->residual_bytes;
    stage->residual_bytes += slots->bytes * slots->count;
  }

  void PlaceBoundaries(int s) {
    StageMemory& stage = program_.memory.stages[s];
    std::map<std::string, int64_t> bytes;
    for (const auto& f : module_.functions()) {
      if (program_.schedule.StageOf(f->role()) != s) continue;
      const auto see = [&](const Binding& binding, Value v) {
        if (binding.kind != Binding::kBoundary) return;
        int64_t& most = bytes[binding.name];
        most = std::max(most, RoundUp(Storage(v.type()).bytes, kAlignment));
      };
      for (Node* a : f->args()) see(a->binding, a->result());
      for (int r = 0; r < f->num_results(); ++r) see(f->result_binding(r), f->result(r));
    }
    for (auto& [name, slots] : stage.boundaries) {
      slots.offset = stage.boundary_bytes;
      slots.bytes = bytes[name];
      stage.boundary_bytes += slots.bytes * slots.count;
    }
  }

  absl::Status PlanFunction(const Function& f) {
    const int s = program_.schedule.StageOf(f.role());
    if (s < 0) return absl::OkStatus();
    StageMemory& stage = program_.memory.stages[s];
    FunctionPlanner planner(f, mesh_, context_, stage);
    ASSIGN_OR_RETURN(program_.memory.functions[f.name()],
                     planner.Plan(residuals_[f.role().IsOfMicrobatch() ? f.role().index : -1]));
    stage.frame_bytes = std::max(stage.frame_bytes, program_.memory.functions[f.name()].frame_bytes);
    stage.spill_bytes = std::max(stage.spill_bytes, planner.spill_bytes());  // of frames; residuals follow
    return absl::OkStatus();
  }

  void PlaceSpill(int s) {
    StageMemory& stage = program_.memory.stages[s];
    for (auto* sets : {&stage.residuals, &stage.weight_residuals}) {
      for (auto& [_, slots] : *sets) {
        slots.spill_offset = stage.spill_bytes;
        stage.spill_bytes += slots.spill_bytes * slots.count;
      }
    }
  }

  void Note() const {
    const auto& stages = program_.memory.stages;
    const auto worst = std::max_element(
        stages.begin(), stages.end(),
        [](const StageMemory& a, const StageMemory& b) { return a.peak_bytes() < b.peak_bytes(); });
    if (worst == stages.end()) return;
    const auto state = [&](const char* kind) {
      auto it = worst->state_bytes_by_kind.find(kind);
      return it == worst->state_bytes_by_kind.end() ? 0 : it->second;
    };
    const int64_t named = state("parameter") + state("working_copy") + state("gradient") + state("moment");
    std::vector<std::string> parts;
    const auto add = [&](absl::string_view what, int64_t bytes) {
      if (bytes > 0) parts.push_back(absl::StrCat(what, " ", BytesText(bytes)));
    };
    add("parameters", state("parameter"));
    add("working copies", state("working_copy"));
    add("gradients", state("gradient"));
    add("optimizer", state("moment"));
    add("residuals", worst->residual_bytes);
    add("boundary", worst->boundary_bytes);
    add("in flight", worst->future_bytes);
    add("inputs and reports", worst->input_bytes + worst->state_bytes - named);
    add("workspace", worst->frame_bytes);
    double fragmentation = 1;
    for (const auto& [_, f] : program_.memory.functions) {
      if (f.live_bytes > 0) fragmentation = std::max(fragmentation, 1.0 * f.frame_bytes / f.live_bytes);
    }
    context_.Note(absl::StrFormat(
        "peak per rank %s (%s), frames within %.1f%% of live bytes%s", BytesText(worst->peak_bytes()),
        absl::StrJoin(parts, ", "), 100 * (fragmentation - 1),
        worst->spill_bytes > 0 ? absl::StrCat(", ", BytesText(worst->spill_bytes), " reserved for overflow")
                               : ""));
  }

  Program& program_;
  const Module& module_;
  const Mesh& mesh_;
  const PassContext& context_;
  std::map<int, SavedValues> residuals_;  // by chunk
};

}  // namespace

std::string FutureScratchName(const Function& f, const Node& start) {
  return absl::StrCat("scratch of @", f.name(), " %", start.result_name());
}

absl::StatusOr<bool> PlanMemory(Program& program, const PassContext& context) {
  RETURN_IF_ERROR(Planner(program, context).Run());
  return true;
}

}  // namespace moe::passes
