#include <algorithm>
#include <deque>
#include <tuple>
#include <utility>

#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/passes/certify/certify_parts.h"

// (b): runs the stored actions of all stages against each other. Every recv, slot and joint reduction that
// would make a rank wait makes this run wait too; nothing is buffered. Along the way it follows which
// microbatch is in which slot.

namespace moe::passes {
namespace {

class Run {
 public:
  Run(const ProgramFrame& f, const std::string& name)
      : f_(f), name_(name), actions_(f.program->schedule.actions.at(name)) {}

  absl::Status Check() {
    next_.assign(f_.stages, 0);
    reduced_.assign(f_.stages, 0);
    CountReaders();
    for (bool progress = true; progress;) {
      progress = false;
      for (int s = 0; s < f_.stages; ++s) {
        while (next_[s] < actions_[s].size()) {
          RETURN_IF_ERROR(Step(s));
          if (!waits_for_.empty()) break;
          ++next_[s];
          progress = true;
        }
      }
      if (!progress) {
        RETURN_IF_ERROR(JoinReductions(&progress));
      }
    }
    for (int s = 0; s < f_.stages; ++s) {
      if (next_[s] < actions_[s].size()) return Stuck();
    }
    for (const auto& [key, queue] : queues_) {
      if (queue.empty()) continue;
      return Uncertified(name_, ": ", StageName(*f_.module, std::get<0>(key)), " sends ",
                         queue.front().boundary, " mb", queue.front().microbatch, " to ",
                         StageName(*f_.module, std::get<1>(key)), ", which never receives it");
    }
    return absl::OkStatus();
  }

 private:
  using Buffer = std::tuple<int, std::string, int>;  // stage, value ("residuals.<chunk>" too), slot
  using Item = std::tuple<int, std::string, int>;    // stage, value, microbatch
  struct Contents {
    int microbatch = -1;
    int readers = 0;  // that have not read yet
    int pending = 0;  // sends that have not completed
  };
  struct Message {
    std::string boundary;
    int microbatch, slot;
  };

  static bool RunsAChunk(const Action& a) {
    return a.kind == Action::kForward || a.kind == Action::kBackward || a.kind == Action::kInputGrad ||
           a.kind == Action::kWeightGrad;
  }

  std::string Where(int s) const {
    return absl::StrCat(name_, ", ", StageName(*f_.module, s), ", action ", next_[s], " (",
                        ActionToString(actions_[s][next_[s]]), ")");
  }

  void CountReaders() {
    for (int s = 0; s < f_.stages; ++s) {
      for (const Action& a : actions_[s]) {
        if (a.kind == Action::kSend) ++readers_[{s, a.boundary, a.microbatch}];
        if (!RunsAChunk(a)) continue;
        if (a.kind != Action::kForward) ++readers_[{s, absl::StrCat("residuals.", a.chunk), a.microbatch}];
        if (a.kind == Action::kWeightGrad)
          ++readers_[{s, absl::StrCat("weight residuals.", a.chunk), a.microbatch}];
        for (const std::string& v : f_.ports.at(RoleOf(a, s)).in) ++readers_[{s, v, a.microbatch}];
      }
    }
  }

  // Writes a slot. Sets waits_for_ if a send still reads it.
  absl::Status Write(int s, const std::string& value, int slot, int microbatch) {
    Contents& c = contents_[{s, value, slot}];
    if (c.pending > 0) {
      waits_for_ = absl::StrCat("the send of ", value, " mb", c.microbatch, " from slot ", slot);
      return absl::OkStatus();
    }
    if (c.readers > 0) {
      return Uncertified(Where(s), " overwrites slot ", slot, " of ", value, " while microbatch ",
                         c.microbatch, " in it is still read ", c.readers, " times");
    }
    return absl::OkStatus();
  }
  void Written(int s, const std::string& value, int slot, int microbatch) {
    contents_[{s, value, slot}] = {microbatch, readers_[{s, value, microbatch}], 0};
  }

  absl::Status Read(int s, const std::string& value, int slot, int microbatch) {
    Contents& c = contents_[{s, value, slot}];
    if (c.microbatch != microbatch) {
      return Uncertified(
          Where(s), " reads ", value, " of microbatch ", microbatch, " from slot ", slot, ", which holds ",
          c.microbatch < 0 ? std::string("nothing") : absl::StrCat("microbatch ", c.microbatch));
    }
    if (c.readers <= 0)
      return Uncertified(Where(s), " reads ", value, " in slot ", slot, " once more than planned");
    --c.readers;
    return absl::OkStatus();
  }

  // Executes the stage's next action, or sets waits_for_.
  absl::Status Step(int s) {
    const Action& a = actions_[s][next_[s]];
    waits_for_.clear();
    switch (a.kind) {
      case Action::kSend: {
        RETURN_IF_ERROR(Read(s, a.boundary, a.slot, a.microbatch));
        ++contents_[{s, a.boundary, a.slot}].pending;
        queues_[{s, a.peer_stage, a.boundary[0]}].push_back({a.boundary, a.microbatch, a.slot});
        return absl::OkStatus();
      }
      case Action::kRecv: {
        RETURN_IF_ERROR(Write(s, a.boundary, a.slot, a.microbatch));
        if (!waits_for_.empty()) return absl::OkStatus();
        auto& queue = queues_[{a.peer_stage, s, a.boundary[0]}];
        if (queue.empty()) {
          waits_for_ = absl::StrCat("a send from ", StageName(*f_.module, a.peer_stage));
          return absl::OkStatus();
        }
        const Message m = queue.front();
        if (m.boundary != a.boundary || m.microbatch != a.microbatch) {
          return Uncertified(Where(s), " meets the send of ", m.boundary, " mb", m.microbatch, " from ",
                             StageName(*f_.module, a.peer_stage), ", which is first in its queue");
        }
        queue.pop_front();
        --contents_[{a.peer_stage, m.boundary, m.slot}].pending;
        Written(s, a.boundary, a.slot, a.microbatch);
        return absl::OkStatus();
      }
      case Action::kForward:
      case Action::kBackward:
      case Action::kInputGrad:
      case Action::kWeightGrad:
        return Compute(s, a);
      case Action::kUpdate:
      case Action::kReport: {
        const std::vector<const Node*> all = Reductions(RoleOf(a, s));
        if (reduced_[s] < all.size()) {
          waits_for_ = absl::StrCat("the other stages of ", Describe(*all[reduced_[s]]));
        } else {
          reduced_[s] = 0;
        }
        return absl::OkStatus();
      }
      default:
        return absl::OkStatus();
    }
  }

  absl::Status Compute(int s, const Action& a) {
    const ProgramFrame::Ports& ports = f_.ports.at(RoleOf(a, s));
    const std::string residuals = absl::StrCat("residuals.", a.chunk);
    for (const std::string& v : ports.out) {
      RETURN_IF_ERROR(Write(s, v, a.boundary_slots.at(v), a.microbatch));
      if (!waits_for_.empty()) return absl::OkStatus();
    }
    if (a.kind == Action::kForward) {
      RETURN_IF_ERROR(Write(s, residuals, a.residual_slot, a.microbatch));
      Written(s, residuals, a.residual_slot, a.microbatch);
    } else {
      RETURN_IF_ERROR(Read(s, residuals, a.residual_slot, a.microbatch));
    }
    const std::string weights = absl::StrCat("weight residuals.", a.chunk);
    if (a.kind == Action::kInputGrad) {
      RETURN_IF_ERROR(Write(s, weights, a.weight_slot, a.microbatch));
      Written(s, weights, a.weight_slot, a.microbatch);
    } else if (a.kind == Action::kWeightGrad) {
      RETURN_IF_ERROR(Read(s, weights, a.weight_slot, a.microbatch));
    }
    for (const std::string& v : ports.in) RETURN_IF_ERROR(Read(s, v, a.boundary_slots.at(v), a.microbatch));
    for (const std::string& v : ports.out) Written(s, v, a.boundary_slots.at(v), a.microbatch);
    return absl::OkStatus();
  }

  std::vector<const Node*> Reductions(FunctionRole role) {
    auto [it, fresh] = reductions_.try_emplace(role);
    if (fresh) {
      for (const Node* n : f_.module->Find(role)->NodesOf("comm.stage_reduce")) it->second.push_back(n);
    }
    return it->second;
  }

  std::string Describe(const Node& n) const {
    return absl::StrCat("stage_reduce %", n.result_name(), " ", n.String("reduction"), " over stages ",
                        absl::StrJoin(n.Ints("stages"), ", "), " of ",
                        TypeToString(n.type(), f_.module->mesh()));
  }

  const Node* NextReduction(int s) {
    if (next_[s] >= actions_[s].size()) return nullptr;
    const Action& a = actions_[s][next_[s]];
    if (a.kind != Action::kUpdate && a.kind != Action::kReport) return nullptr;
    const std::vector<const Node*> all = Reductions(RoleOf(a, s));
    return reduced_[s] < all.size() ? all[reduced_[s]] : nullptr;
  }

  // A reduction over stages happens when all of them have come to it.
  absl::Status JoinReductions(bool* progress) {
    for (int s = 0; s < f_.stages; ++s) {
      const Node* mine = NextReduction(s);
      if (mine == nullptr) continue;
      const std::vector<int64_t>& stages = mine->Ints("stages");
      if (std::find(stages.begin(), stages.end(), s) == stages.end()) {
        return Uncertified(Where(s), " takes part in ", Describe(*mine), ", which does not name it");
      }
      bool all = true;
      for (const int64_t other : stages) {
        const Node* theirs = NextReduction(static_cast<int>(other));
        if (theirs == nullptr) {
          all = false;
        } else if (theirs->Ints("stages") == stages &&
                   (!(theirs->type() == mine->type()) ||
                    theirs->String("reduction") != mine->String("reduction"))) {
          return Uncertified(Where(s), " comes to ", Describe(*mine), " where ",
                             StageName(*f_.module, static_cast<int>(other)), " comes to ", Describe(*theirs));
        } else {
          all = all && theirs->Ints("stages") == stages;
        }
      }
      if (!all) continue;
      for (const int64_t other : stages) ++reduced_[other];
      *progress = true;
      return absl::OkStatus();
    }
    return absl::OkStatus();
  }

  absl::Status Stuck() {
    std::vector<std::string> at;
    for (int s = 0; s < f_.stages; ++s) {
      if (next_[s] >= actions_[s].size()) continue;
      RETURN_IF_ERROR(Step(s));  // waits again, which says for what
      at.push_back(absl::StrCat(StageName(*f_.module, s), " at action ", next_[s], " (",
                                ActionToString(actions_[s][next_[s]]), ") waits for ", waits_for_));
    }
    return Uncertified(name_, " stands still: ", absl::StrJoin(at, "; "));
  }

  const ProgramFrame& f_;
  const std::string name_;
  const std::vector<std::vector<Action>>& actions_;
  std::vector<size_t> next_;
  std::vector<size_t> reduced_;  // by stage: reductions of the current action that are done
  std::string waits_for_;        // of the step just tried; empty: it was done
  std::map<std::tuple<int, int, char>, std::deque<Message>> queues_;
  std::map<Buffer, Contents> contents_;
  std::map<Item, int> readers_;
  std::map<FunctionRole, std::vector<const Node*>> reductions_;
};

}  // namespace

absl::Status CheckWaits(const ProgramFrame& f, const std::string& name) { return Run(f, name).Check(); }

}  // namespace moe::passes
