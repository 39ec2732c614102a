#include "moe/passes/certify/certify.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "moe/base/quantities.h"
#include "moe/base/status.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/registry.h"
#include "moe/ir/state.h"
#include "moe/ir/verifier.h"
#include "moe/passes/certify/certify_parts.h"
#include "moe/passes/stages/partition_stages.h"

namespace moe::passes {
namespace {

constexpr int kMaxCount = 1 << 20;  // chunks, microbatches, slots

ProgramFrame::Ports PortsOf(const Function& f) {
  ProgramFrame::Ports p;
  for (const Node* a : f.args()) {
    if (a->binding.kind == Binding::kBoundary) p.in.insert(a->binding.name);
  }
  for (int i = 0; i < f.num_results(); ++i) {
    if (f.result_binding(i).kind == Binding::kBoundary) p.out.insert(f.result_binding(i).name);
  }
  return p;
}

class ActionChecker {
 public:
  ActionChecker(const ProgramFrame& f, const std::string& name)
      : f_(f), name_(name), train_(name == "train_step") {}

  absl::Status Check() {
    const auto& per_stage = f_.program->schedule.actions.at(name_);
    if (static_cast<int>(per_stage.size()) != f_.stages) {
      return Uncertified(name_, ": actions of ", per_stage.size(), " stages, the mesh has ", f_.stages);
    }
    for (int s = 0; s < f_.stages; ++s) {
      for (size_t i = 0; i < per_stage[s].size(); ++i) {
        const absl::Status status = CheckOne(s, per_stage[s], i);
        if (!status.ok()) {
          return Uncertified(name_, ", ", StageName(*f_.module, s), ", action ", i, " (",
                             ActionToString(per_stage[s][i]), "): ", status.message());
        }
      }
      RETURN_IF_ERROR(CheckOnce(s, per_stage[s]));
    }
    // A microbatch goes through one copy of the model, the one that runs its first chunk.
    const Schedule& schedule = f_.program->schedule;
    std::vector<int> copy_of(f_.microbatches, 0);
    for (const auto& [cell, n] : cells_) {
      const auto [kind, c, m] = cell;
      if (kind == Action::kForward && schedule.IsFirst(c) && n > 0) copy_of[m] = schedule.CopyOfChunk(c);
    }
    for (int c = 0; c < f_.chunks; ++c) {
      for (int m = 0; m < f_.microbatches; ++m) {
        const bool runs = schedule.CopyOfChunk(c) == copy_of[m];
        RETURN_IF_ERROR(Count({Action::kForward, c, m}, runs));
        RETURN_IF_ERROR(Count({Action::kBackward, c, m}, runs && train_ && !f_.Split(c)));
        RETURN_IF_ERROR(Count({Action::kInputGrad, c, m}, runs && train_ && f_.Split(c)));
        RETURN_IF_ERROR(Count({Action::kWeightGrad, c, m}, runs && train_ && f_.Split(c)));
      }
    }
    return absl::OkStatus();
  }

 private:
  using Cell = std::tuple<Action::Kind, int, int>;

  static absl::Status Bad(absl::string_view what) { return absl::FailedPreconditionError(what); }

  absl::Status Count(const Cell& cell, int want) const {
    auto it = cells_.find(cell);
    const int n = it == cells_.end() ? 0 : it->second;
    if (n == want) return absl::OkStatus();
    const auto [kind, c, m] = cell;
    const char* letter = kind == Action::kForward     ? "F"
                         : kind == Action::kBackward  ? "B"
                         : kind == Action::kInputGrad ? "I"
                                                      : "W";
    return Uncertified(name_, ": ", letter, c, ".", m, " (microbatch ", m, " of chunk ", c, ", ",
                       StageName(*f_.module, f_.program->schedule.chunk_stage[c]), ") runs ", n,
                       " times, not ", want);
  }

  absl::Status CheckSlot(int s, const std::string& boundary, int slot) const {
    const auto& slots = f_.program->memory.stages[s].boundaries;
    auto it = slots.find(boundary);
    if (it == slots.end()) return Bad(absl::StrCat("the stage has no slots for ", boundary));
    if (slot < 0 || slot >= it->second.count) {
      return Bad(absl::StrCat("slot ", slot, " of ", boundary, ", of which there are ", it->second.count));
    }
    return absl::OkStatus();
  }

  absl::Status CheckOne(int s, const std::vector<Action>& actions, size_t i) {
    const Action& a = actions[i];
    switch (a.kind) {
      case Action::kForward:
      case Action::kBackward:
      case Action::kInputGrad:
      case Action::kWeightGrad: {
        if (a.chunk < 0 || a.chunk >= f_.chunks) return Bad("no such chunk");
        if (a.microbatch < 0 || a.microbatch >= f_.microbatches) return Bad("no such microbatch");
        if (f_.program->schedule.chunk_stage[a.chunk] != s) return Bad("the chunk belongs to another stage");
        const FunctionRole role = RoleOf(a, s);
        const std::string name = role.Name();
        if (!f_.ports.count(role)) return Bad(absl::StrCat("there is no function @", name));
        const auto exists = [&](const std::map<int, StageMemory::Slots>& sets, int slot) {
          auto slots = sets.find(a.chunk);
          return slots != sets.end() && slot >= 0 && slot < slots->second.count;
        };
        const StageMemory& memory = f_.program->memory.stages[s];
        if (!exists(memory.residuals, a.residual_slot)) {
          return Bad(absl::StrCat("residual slot ", a.residual_slot, " does not exist"));
        }
        const bool half = a.kind == Action::kInputGrad || a.kind == Action::kWeightGrad;
        if (half && !exists(memory.weight_residuals, a.weight_slot)) {
          return Bad(absl::StrCat("slot ", a.weight_slot, " for the weight gradient does not exist"));
        }
        const ProgramFrame::Ports& ports = f_.ports.at(role);
        for (const auto& [boundary, slot] : a.boundary_slots) {
          if (!ports.in.count(boundary) && !ports.out.count(boundary)) {
            return Bad(absl::StrCat("@", name, " has no boundary value ", boundary));
          }
          RETURN_IF_ERROR(CheckSlot(s, boundary, slot));
        }
        for (const auto* names : {&ports.in, &ports.out}) {
          for (const std::string& boundary : *names) {
            if (!a.boundary_slots.count(boundary)) return Bad(absl::StrCat("names no slot for ", boundary));
          }
        }
        ++cells_[{a.kind, a.chunk, a.microbatch}];
        return absl::OkStatus();
      }
      case Action::kSend:
      case Action::kRecv: {
        if (a.peer_stage < 0 || a.peer_stage >= f_.stages || a.peer_stage == s)
          return Bad("no such peer stage");
        if (a.microbatch < 0 || a.microbatch >= f_.microbatches) return Bad("no such microbatch");
        if (a.boundary.empty() || (a.boundary[0] != 'a' && a.boundary[0] != 'g'))
          return Bad("no boundary value");
        return CheckSlot(s, a.boundary, a.slot);
      }
      case Action::kReset:
        return i == 0 ? absl::OkStatus() : Bad("a reset must come first, before anything accumulates");
      case Action::kUpdate:
      case Action::kReport: {
        const bool update = a.kind == Action::kUpdate;
        if (update && !train_) return Bad("only train_step updates");
        if ((update ? f_.update : f_.report)[s] == nullptr) {
          return Bad(absl::StrCat("there is no function @", RoleOf(a, s).Name()));
        }
        for (size_t j = i + 1; j < actions.size(); ++j) {
          if (actions[j].kind != Action::kReport)
            return Bad(absl::StrCat(ActionToString(actions[j]), " comes after it"));
        }
        return absl::OkStatus();
      }
      default:
        return Bad("no such kind of action");
    }
  }

  absl::Status CheckOnce(int s, const std::vector<Action>& actions) const {
    const auto count = [&](Action::Kind kind) {
      return std::count_if(actions.begin(), actions.end(), [&](const Action& a) { return a.kind == kind; });
    };
    const auto check = [&](Action::Kind kind, int64_t want, absl::string_view what) {
      const int64_t n = count(kind);
      return n == want ? absl::OkStatus()
                       : Uncertified(name_, ", ", StageName(*f_.module, s), ": ", what, " runs ", n,
                                     " times, not ", want);
    };
    RETURN_IF_ERROR(check(Action::kReset, 1, "reset"));
    RETURN_IF_ERROR(check(Action::kUpdate, train_ && f_.update[s] != nullptr, "update"));
    return check(Action::kReport, f_.report[s] != nullptr, "report");
  }

  const ProgramFrame& f_;
  const std::string name_;
  const bool train_;
  std::map<Cell, int> cells_;
};

}  // namespace

std::string StageName(const Module& module, int stage) {
  const int64_t ranks = module.mesh().ranks_per_stage(), first = stage * ranks;
  return ranks == 1 ? absl::StrCat("stage ", stage, " (rank ", first, ")")
                    : absl::StrCat("stage ", stage, " (ranks ", first, "-", first + ranks - 1, ")");
}

absl::Status BuildFrame(const Program& program, ProgramFrame* f) {
  f->program = &program;
  f->module = program.module.get();
  const Schedule& schedule = program.schedule;
  f->stages = static_cast<int>(f->module->mesh().num_stages());
  f->chunks = static_cast<int>(schedule.chunk_stage.size());
  f->microbatches = schedule.microbatches;
  if (f->chunks < 1 || f->chunks > kMaxCount || f->microbatches < 1 || f->microbatches > kMaxCount) {
    return Uncertified(f->chunks, " chunks and ", f->microbatches, " microbatches; each is between 1 and ",
                       kMaxCount);
  }
  if (schedule.copies < 1 || f->chunks % schedule.copies != 0) {
    return Uncertified(f->chunks, " chunks do not divide into ", schedule.copies, " copies of the model");
  }
  if (static_cast<int>(program.memory.stages.size()) != f->stages) {
    return Uncertified("memory of ", program.memory.stages.size(), " stages, the mesh has ", f->stages);
  }
  for (int c = 0; c < f->chunks; ++c) {
    if (schedule.chunk_stage[c] < 0 || schedule.chunk_stage[c] >= f->stages) {
      return Uncertified("chunk ", c, " on stage ", schedule.chunk_stage[c], "; the mesh has ", f->stages,
                         " stages");
    }
    const auto find = [&](FunctionKind kind) { return f->module->Find({kind, c}); };
    const auto missing = [&](FunctionKind kind) {
      return Uncertified("chunk ", c, " has no function @", FunctionRole(kind, c).Name());
    };
    const Function* input = find(FunctionKind::kInputGrad);
    const Function* weight = find(FunctionKind::kWeightGrad);
    f->forward.push_back(find(FunctionKind::kForward));
    if (f->forward[c] == nullptr) return missing(FunctionKind::kForward);
    if (input == nullptr && weight == nullptr) {
      f->backward.push_back({find(FunctionKind::kBackward)});
      if (f->backward[c][0] == nullptr) return missing(FunctionKind::kBackward);
    } else {
      if (input == nullptr) return missing(FunctionKind::kInputGrad);
      if (weight == nullptr) return missing(FunctionKind::kWeightGrad);
      f->backward.push_back({input, weight});
    }
  }
  for (int s = 0; s < f->stages; ++s) {
    f->update.push_back(f->module->Find({FunctionKind::kUpdate, s}));
    f->report.push_back(f->module->Find({FunctionKind::kReport, s}));
  }
  std::set<const Function*> known;
  for (const auto* list : {&f->forward, &f->update, &f->report}) known.insert(list->begin(), list->end());
  for (const auto& list : f->backward) known.insert(list.begin(), list.end());
  for (const auto& function : f->module->functions()) {
    if (!known.count(function.get())) return Uncertified("nothing runs @", function->name());
    f->ports[function->role()] = PortsOf(*function);
  }
  for (const char* name : {"train_step", "eval"}) {
    if (!schedule.actions.count(name)) return Uncertified("there is no program '", name, "'");
  }
  if (schedule.actions.size() != 2) return Uncertified("programs are train_step and eval");
  return absl::OkStatus();
}

absl::Status CheckActions(const ProgramFrame& f) {
  for (const auto& [name, _] : f.program->schedule.actions) RETURN_IF_ERROR(ActionChecker(f, name).Check());
  // A value is one thing on both sides of a transfer.
  std::map<std::string, std::pair<Type, std::string>> types;
  for (const auto& function : f.module->functions()) {
    const auto see = [&](const Binding& binding, Value v) -> absl::Status {
      if (binding.kind != Binding::kBoundary) return absl::OkStatus();
      auto [it, fresh] = types.try_emplace(binding.name, std::pair(v.type(), function->name()));
      if (fresh || it->second.first == v.type()) return absl::OkStatus();
      const Mesh& mesh = f.module->mesh();
      return Uncertified("boundary value ", it->first, " is ", TypeToString(it->second.first, mesh), " in @",
                         it->second.second, " and ", TypeToString(v.type(), mesh), " in @", function->name());
    };
    for (Node* a : function->args()) RETURN_IF_ERROR(see(a->binding, a->result()));
    for (int r = 0; r < function->num_results(); ++r) {
      RETURN_IF_ERROR(see(function->result_binding(r), function->result(r)));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCollectives(const ProgramFrame& f) {
  const Mesh& mesh = f.module->mesh();
  const std::optional<AxisId> pp = mesh.Find("pp");
  for (const auto& function : f.module->functions()) {
    const Node* first = nullptr;
    for (const auto& n : function->body()) {
      if (!n->op().Has(kCollective)) continue;
      const std::string at = absl::StrCat("@", function->name(), ": ", n->op_name(), " %", n->result_name());
      if (first == nullptr) first = n.get();
      if (n->queue != first->queue) {
        return Uncertified(at, " and ", first->op_name(), " %", first->result_name(),
                           " are on different queues, so ranks may meet them in different orders");
      }
      if (n->Is("comm.convert")) return Uncertified(at, " was never lowered to collectives");
      if (n->Is("comm.stage_reduce")) {
        if (function->role().IsOfMicrobatch()) return Uncertified(at, " stands outside the update");
        std::set<int64_t> stages;
        for (const int64_t s : n->Ints("stages")) {
          if (s < 0 || s >= f.stages || !stages.insert(s).second) {
            return Uncertified(at, ": stage ", s, " of ", f.stages, " does not exist, or appears twice");
          }
        }
        continue;
      }
      for (const AxisId a : n->axes()) {
        if (pp && a == *pp) return Uncertified(at, " moves the pipeline axis");
      }
      const absl::Status parts = ConversionParts(*n, mesh).status();
      if (!parts.ok()) return Uncertified(at, ": ", parts.message());
    }
  }
  return absl::OkStatus();
}

std::string Certificate::ToString() const {
  return absl::StrCat(CountText(actions), " actions on ", CountText(ranks), ranks == 1 ? " rank" : " ranks",
                      ": no cyclic wait, each action once, every node covered");
}

absl::StatusOr<Certificate> Certify(const Program& program, const CertifyOptions& options) {
  RETURN_IF_ERROR(Annotate(Verify(*program.module), "certify"));
  ProgramFrame frame;
  RETURN_IF_ERROR(BuildFrame(program, &frame));
  RETURN_IF_ERROR(CheckActions(frame));
  RETURN_IF_ERROR(CheckCollectives(frame));
  RETURN_IF_ERROR(CheckCoverage(frame));
  for (const auto& [name, _] : program.schedule.actions) RETURN_IF_ERROR(CheckWaits(frame, name));
  RETURN_IF_ERROR(CheckFutures(frame));
  RETURN_IF_ERROR(CheckMemory(frame, options));
  Certificate c;
  const int64_t per_stage = program.module->mesh().ranks_per_stage();
  c.ranks = per_stage * frame.stages;
  for (const auto& actions : program.schedule.actions.at("train_step")) {
    c.actions += static_cast<int64_t>(actions.size()) * per_stage;
  }
  c.logical_nodes = static_cast<int64_t>(program.inventory.size());
  for (const LogicalNode& n : program.inventory) c.rewritten_nodes += !n.rewritten_by.empty();
  return c;
}

absl::StatusOr<bool> CertifyProgram(Program& program, const PassContext& context) {
  CertifyOptions options;
  options.overload = context.strategy.overload;
  options.memory_limit = context.memory_limit;
  ASSIGN_OR_RETURN(const Certificate c, Certify(program, options));
  context.Note(c.ToString());
  return false;
}

}  // namespace moe::passes
