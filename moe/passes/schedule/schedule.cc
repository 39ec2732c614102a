#include "moe/passes/schedule/schedule.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/cost/play_actions.h"
#include "moe/ir/state.h"
#include "moe/passes/schedule/schedule_table.h"

namespace moe::passes {
namespace {

constexpr double kForwardTime = 1, kBackwardTime = 2, kHalfBackwardTime = 1, kTransferTime = 0.25;

double TimeOf(Action::Kind kind) {
  return kind == Action::kForward    ? kForwardTime
         : kind == Action::kBackward ? kBackwardTime
                                     : kHalfBackwardTime;
}

// Boundary values by function: which it reads and which it makes.
struct Ports {
  std::set<std::string> in, out;
};

Ports PortsOf(const Function& f) {
  Ports p;
  for (const Node* a : f.args()) {
    if (a->binding.kind == Binding::kBoundary) p.in.insert(a->binding.name);
  }
  for (int i = 0; i < f.num_results(); ++i) {
    if (f.result_binding(i).kind == Binding::kBoundary) {
      p.out.insert(f.result_binding(i).name);
    }
  }
  return p;
}

// Slots of one buffer that is used over and over.
class Slots {
 public:
  // A slot that is free at `time`, the one free for longest; to be released `releases` times.
  int Take(double time, int releases) {
    int best = -1;
    for (size_t i = 0; i < slots_.size(); ++i) {
      const Slot& s = slots_[i];
      if (s.pending > 0 || s.free_at > time) continue;
      if (best < 0 || s.free_at < slots_[best].free_at) best = static_cast<int>(i);
    }
    if (best < 0) {
      best = static_cast<int>(slots_.size());
      slots_.push_back({});
    }
    slots_[best].pending = releases;
    slots_[best].free_at = time;
    return best;
  }
  void Release(int slot, double time) {
    --slots_[slot].pending;
    slots_[slot].free_at = std::max(slots_[slot].free_at, time);
  }
  int count() const { return static_cast<int>(slots_.size()); }

 private:
  struct Slot {
    int pending = 0;
    double free_at = 0;
  };
  std::vector<Slot> slots_;
};

class Resolver {
 public:
  Resolver(const Module& module, const Schedule& schedule, bool train)
      : module_(module),
        schedule_(schedule),
        train_(train),
        stages_(static_cast<int>(schedule.table.size())),
        split_(SplitChunks(schedule)) {}

  absl::StatusOr<std::vector<std::vector<Action>>> Run() {
    RETURN_IF_ERROR(FindPorts());
    for (int s = 0; s < stages_; ++s) PlaceActions(s);
    RETURN_IF_ERROR(Simulate());
    return actions_;
  }
  int residual_slots() const {
    int most = 0;
    for (const auto& [_, slots] : residuals_) most = std::max(most, slots.count());
    return most;
  }

 private:
  absl::Status FindPorts() {
    for (size_t c = 0; c < schedule_.chunk_stage.size(); ++c) {
      const std::vector<Action::Kind> whole = {Action::kForward, Action::kBackward};
      const std::vector<Action::Kind> halves = {Action::kForward, Action::kInputGrad, Action::kWeightGrad};
      for (const Action::Kind kind : split_[c] ? halves : whole) {
        const FunctionRole role(KindOfFunction(kind), static_cast<int>(c));
        const Function* f = module_.Find(role);
        if (f == nullptr) {
          return absl::FailedPreconditionError(
              absl::StrCat("schedule: chunk ", c, " has no function @", role.Name(), "; run ",
                           split_[c] ? "split-backward" : "split-phases", " before it"));
        }
        ports_[role] = PortsOf(*f);
      }
    }
    return absl::OkStatus();
  }

  int StageOf(int chunk) const { return schedule_.chunk_stage[chunk]; }

  void PlaceActions(int stage) {
    actions_.emplace_back();
    std::vector<Action>& out = actions_.back();
    out.push_back({Action::kReset});
    for (const Schedule::Cell& cell : schedule_.table[stage]) {
      if (cell.kind == 'F') {
        PlaceCell(stage, Action::kForward, cell);
      } else if (train_ && split_[cell.chunk]) {
        if (cell.kind != 'W') PlaceCell(stage, Action::kInputGrad, cell);
        if (cell.kind != 'I') PlaceCell(stage, Action::kWeightGrad, cell);
      } else if (train_) {
        PlaceCell(stage, Action::kBackward, cell);
      }
    }
    const auto whole = [&](Action::Kind kind) {
      Action a;
      a.kind = kind;
      if (FunctionOf(module_, a, stage) != nullptr) out.push_back(a);
    };
    if (train_) whole(Action::kUpdate);
    whole(Action::kReport);
  }

  // The function's action, the recv of what it takes from another stage, the send of what another takes from
  // it.
  void PlaceCell(int stage, Action::Kind kind, const Schedule::Cell& cell) {
    std::vector<Action>& out = actions_.back();
    const int c = cell.chunk;
    Action a;
    a.kind = kind;
    a.chunk = c;
    a.microbatch = cell.microbatch;
    if (kind == Action::kWeightGrad) {  // what it reads came to its input gradient
      out.push_back(a);
      return;
    }
    const bool forward = kind == Action::kForward;
    const Ports& ports = ports_[RoleOf(a, stage)];
    const int from = forward ? c - 1 : c + 1, to = forward ? c + 1 : c - 1;
    const std::string in = forward ? absl::StrCat("act.", c - 1) : absl::StrCat("grad.", c);
    const std::string result = forward ? absl::StrCat("act.", c) : absl::StrCat("grad.", c - 1);
    if (Takes(kind, c, in) && StageOf(from) != stage) {
      out.push_back(Transfer(Action::kRecv, in, from, cell.microbatch, StageOf(from)));
    }
    out.push_back(a);
    if (ports.out.count(result) && StageOf(to) != stage) {
      out.push_back(Transfer(Action::kSend, result, c, cell.microbatch, StageOf(to)));
    }
  }

  // An input gradient also takes what only its weight gradient reads.
  bool Takes(Action::Kind kind, int chunk, const std::string& boundary) {
    return ports_[{KindOfFunction(kind), chunk}].in.count(boundary) > 0 ||
           (kind == Action::kInputGrad && ports_[{FunctionKind::kWeightGrad, chunk}].in.count(boundary) > 0);
  }

  static Action Transfer(Action::Kind kind, const std::string& boundary, int producer, int microbatch,
                         int peer) {
    Action a;
    a.kind = kind;
    a.chunk = producer;
    a.microbatch = microbatch;
    a.boundary = boundary;
    a.peer_stage = peer;
    return a;
  }

  // How many functions of `stage` read the value, of the microbatch that is in it.
  int LocalReaders(const std::string& boundary, int stage) const {
    int n = 0;
    for (const auto& [role, ports] : ports_) {
      if (role.kind != FunctionKind::kForward && !train_) continue;
      if (StageOf(role.index) == stage && ports.in.count(boundary)) ++n;
    }
    return n;
  }

  // When the stage's next action can start; infinite while it waits for something that has not happened.
  double StartOf(int s) const {
    if (next_[s] >= actions_[s].size()) return kNever;
    const Action& a = actions_[s][next_[s]];
    double start = clock_[s];
    if (a.kind == Action::kRecv) {
      auto it = queues_.find({a.peer_stage, s, a.boundary[0]});
      if (it == queues_.end() || it->second.waiting.empty()) return kNever;
      const auto& [boundary, microbatch, ready] = it->second.waiting.front();
      if (boundary != a.boundary || microbatch != a.microbatch) return kNever;
      return std::max({start, ready, it->second.free_at});
    }
    const FunctionRole role = RoleOf(a, s);
    if (!role.IsOfMicrobatch()) return start;
    for (const std::string& v : ports_.at(role).in) {
      if (!where_.count({s, v, a.microbatch})) return kNever;
    }
    return start;
  }

  absl::Status Simulate() {
    next_.assign(stages_, 0);
    clock_.assign(stages_, 0.0);
    for (;;) {
      int stage = -1;
      double start = kNever;
      bool finished = true;
      for (int s = 0; s < stages_; ++s) {
        finished = finished && next_[s] >= actions_[s].size();
        const double t = StartOf(s);
        if (t < start) {
          start = t;
          stage = s;
        }
      }
      if (finished) break;
      if (stage < 0) return Stuck();
      Execute(stage, start);
    }
    return absl::OkStatus();
  }

  void Execute(int s, double start) {
    Action& a = actions_[s][next_[s]++];
    switch (a.kind) {
      case Action::kRecv: {
        Queue& q = queues_[{a.peer_stage, s, a.boundary[0]}];
        q.waiting.pop_front();
        const double end = start + kTransferTime;
        q.free_at = end;
        clock_[s] = end;
        boundaries_[{a.peer_stage, a.boundary}].Release(where_.at({a.peer_stage, a.boundary, a.microbatch}),
                                                        end);
        a.slot = boundaries_[{s, a.boundary}].Take(start, LocalReaders(a.boundary, s));
        where_[{s, a.boundary, a.microbatch}] = a.slot;
        break;
      }
      case Action::kSend:
        a.slot = where_.at({s, a.boundary, a.microbatch});
        queues_[{s, a.peer_stage, a.boundary[0]}].waiting.push_back({a.boundary, a.microbatch, clock_[s]});
        break;
      case Action::kForward:
      case Action::kBackward:
      case Action::kInputGrad:
      case Action::kWeightGrad: {
        const double end = start + TimeOf(a.kind);
        clock_[s] = end;
        int& residual = residual_of_[{a.chunk, a.microbatch}];
        if (a.kind == Action::kForward) residual = residuals_[a.chunk].Take(start, 1);
        a.residual_slot = residual;
        const bool last = a.kind == Action::kBackward || a.kind == Action::kWeightGrad || !train_;
        if (last) residuals_[a.chunk].Release(residual, end);
        int& weight = weight_of_[{a.chunk, a.microbatch}];
        if (a.kind == Action::kInputGrad) a.weight_slot = weight = weights_[a.chunk].Take(start, 1);
        if (a.kind == Action::kWeightGrad) weights_[a.chunk].Release(a.weight_slot = weight, end);
        const Ports& ports = ports_.at(RoleOf(a, s));
        for (const std::string& v : ports.out) {
          const bool sent = next_[s] < actions_[s].size() && actions_[s][next_[s]].kind == Action::kSend &&
                            actions_[s][next_[s]].boundary == v;
          const int releases = LocalReaders(v, s) + sent;
          const int slot = boundaries_[{s, v}].Take(start, std::max(1, releases));
          if (releases == 0) boundaries_[{s, v}].Release(slot, end);
          where_[{s, v, a.microbatch}] = slot;
          a.boundary_slots[v] = slot;
        }
        for (const std::string& v : ports.in) {
          const int slot = where_.at({s, v, a.microbatch});
          a.boundary_slots[v] = slot;
          boundaries_[{s, v}].Release(slot, end);
        }
        break;
      }
      default:
        break;
    }
  }

  absl::Status Stuck() const {
    std::vector<std::string> at;
    for (int s = 0; s < stages_; ++s) {
      if (next_[s] >= actions_[s].size()) continue;
      at.push_back(absl::StrCat("stage ", s, " at ", ActionToString(actions_[s][next_[s]])));
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "schedule ", schedule_.name,
        ": the order cannot run with one queue per link and direction; stuck: ", absl::StrJoin(at, "; "),
        ". Let each stage take values in the order in which its neighbour makes them"));
  }

  static constexpr double kNever = std::numeric_limits<double>::infinity();
  struct Queue {
    std::deque<std::tuple<std::string, int, double>>
        waiting;  // boundary, microbatch, when it was handed over
    double free_at = 0;
  };

  const Module& module_;
  const Schedule& schedule_;
  const bool train_;
  const int stages_;
  const std::vector<bool> split_;        // by chunk
  std::map<FunctionRole, Ports> ports_;  // by function
  std::vector<std::vector<Action>> actions_;
  std::vector<size_t> next_;
  std::vector<double> clock_;
  std::map<std::tuple<int, int, char>, Queue> queues_;       // (from, to, 'a' or 'g')
  std::map<std::pair<int, std::string>, Slots> boundaries_;  // (stage, value)
  std::map<std::tuple<int, std::string, int>, int> where_;   // (stage, value, microbatch) -> slot
  std::map<int, Slots> residuals_;                           // by chunk
  std::map<std::pair<int, int>, int> residual_of_;           // (chunk, microbatch) -> slot
  std::map<int, Slots> weights_;                             // by chunk: from I to W
  std::map<std::pair<int, int>, int> weight_of_;
};

}  // namespace

absl::StatusOr<bool> ResolveSchedule(Program& program, const PassContext& context) {
  Schedule& schedule = program.schedule;
  if (schedule.table.empty()) {
    ASSIGN_OR_RETURN(schedule, MakeSchedule(context.strategy));
  } else {
    RETURN_IF_ERROR(Annotate(ValidateTable(schedule), absl::StrCat("schedule ", schedule.name)));
  }
  schedule.actions.clear();
  int in_flight = 0;
  for (const bool train : {true, false}) {
    Resolver resolver(*program.module, schedule, train);
    ASSIGN_OR_RETURN(schedule.actions[train ? "train_step" : "eval"], resolver.Run());
    if (train) in_flight = resolver.residual_slots();
  }
  const cost::StepTimeline played = cost::PlayActions(program, cost::CostDurations(program, context.target));
  context.Note(absl::StrFormat(
      "%s: %d chunks on %d stages x %d microbatches, %.1f%% bubble by cost, at most %d in flight",
      schedule.name, schedule.chunk_stage.size(), schedule.table.size(), schedule.microbatches,
      100 * played.bubble, in_flight));
  return true;
}

}  // namespace moe::passes
