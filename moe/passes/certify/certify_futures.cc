#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "moe/base/status.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/state.h"
#include "moe/passes/certify/certify_parts.h"
#include "moe/passes/memory/plan_memory.h"

// Exchanges in flight from one function to another. Within a function, start and done are nodes of their
// queues, and what certify_memory.cc says of waits and bytes holds for them: the done reads the source, so
// nothing takes its place before. Across functions the frame is gone: source, destination and scratch lie in
// bytes that stay, and between the start and the done of every program nobody writes them.

namespace moe::passes {
namespace {

struct Flight {
  const Function* from = nullptr;  // starts it
  const Node* start = nullptr;
  int part = 0;
  std::string source;            // the state that it sends
  const Function* to = nullptr;  // waits for it
};

std::set<std::string> StatesWritten(const Function& f) {
  std::set<std::string> states;
  for (int r = 0; r < f.num_results(); ++r) {
    if (f.result_binding(r).kind == Binding::kState) states.emplace(f.result_binding(r).name);
  }
  return states;
}

std::optional<std::string> StateOf(Value v) {
  if (v.node->Is("arg") && v.node->binding.kind == Binding::kState) {
    return v.node->binding.name;
  }
  for (const Use& u : v.node->uses(v.index)) {
    if (!u.user->Is("return")) continue;
    const Binding& binding = v.node->function()->result_binding(u.operand);
    if (binding.kind == Binding::kState) return binding.name;
  }
  return std::nullopt;
}

class Flights {
 public:
  Flights(const ProgramFrame& f, int stage) : f_(f), stage_(stage) {}

  absl::Status Check() {
    for (const auto& g : f_.module->functions()) {
      if (f_.program->schedule.StageOf(g->role()) != stage_) continue;
      RETURN_IF_ERROR(Starts(*g));
    }
    for (const auto& g : f_.module->functions()) {
      if (f_.program->schedule.StageOf(g->role()) != stage_) continue;
      RETURN_IF_ERROR(Dones(*g));
    }
    for (const auto& [name, flight] : flights_) {
      if (flight.to == nullptr) return Bad(name, "nobody waits for it");
      for (const auto& [program, stages] : f_.program->schedule.actions) {
        RETURN_IF_ERROR(InProgram(name, flight, program, stages[stage_]));
      }
    }
    return absl::OkStatus();
  }

 private:
  template <typename... Args>
  absl::Status Bad(const std::string& name, const Args&... what) const {
    return Uncertified(StageName(*f_.module, stage_), ", future ", name, ": ", what...);
  }

  absl::Status Starts(const Function& g) {
    for (const auto& n : g.body()) {
      if (!n->Is("comm.start")) continue;
      const bool crosses = CrossesFunctions(*n), last = n->BoolOr("last", false);
      if (crosses && !last) {
        return Bad(n->result_name(), "@", g.name(),
                   " starts it in every microbatch, and the next one accumulates into what it sends");
      }
      if (last && !crosses) return Bad(n->result_name(), "@", g.name(), " waits for it in every microbatch");
    }
    for (int r = 0; r < g.num_results(); ++r) {
      if (g.result_binding(r).kind != Binding::kFuture) continue;
      const std::string name(g.result_binding(r).name);
      const Value v = g.result(r);
      if (!v.node->Is("comm.start"))
        return Bad(name, "@", g.name(), " returns %", v.name(), ", which starts nothing");
      const std::optional<std::string> source = StateOf(v.node->operand(v.index));
      if (!source) return Bad(name, "what it sends is gone when @", g.name(), " ends");
      // The value that the state has when the function ends.
      for (int s = 0; s < g.num_results(); ++s) {
        if (g.result_binding(s).kind == Binding::kState && g.result_binding(s).name == *source &&
            g.result(s) != v.node->operand(v.index)) {
          return Bad(name, "@", g.name(), " overwrites @", *source, " while it is sent");
        }
      }
      const bool fresh = flights_.emplace(name, Flight{&g, v.node, v.index, *source, nullptr}).second;
      if (!fresh) return Bad(name, "@", g.name(), " starts it once more");
    }
    return absl::OkStatus();
  }

  absl::Status Dones(const Function& g) {
    for (const Node* a : g.args()) {
      if (a->binding.kind != Binding::kFuture) continue;
      const std::string name(a->binding.name);
      auto it = flights_.find(name);
      if (it == flights_.end()) return Bad(name, "@", g.name(), " waits for it, and nobody starts it");
      if (it->second.to != nullptr) return Bad(name, "@", g.name(), " waits for it once more");
      if (!(a->type() == it->second.start->type(it->second.part))) {
        return Bad(name, "@", g.name(), " takes it for another type");
      }
      const bool one = a->uses().size() == 1 && a->uses()[0].user->Is("comm.done");
      if (!one || StateOf(a->uses()[0].user->operand(1)) != it->second.source ||
          !a->uses()[0].user->operand(1).node->Is("arg")) {
        return Bad(name, "@", g.name(), " does not wait for it, or does not hold @", it->second.source);
      }
      if (StatesWritten(g).count(it->second.source)) {
        return Bad(name, "@", g.name(), " overwrites @", it->second.source);
      }
      it->second.to = &g;
    }
    return absl::OkStatus();
  }

  // From the last start on, nobody writes what is sent, and somebody waits once.
  absl::Status InProgram(const std::string& name, const Flight& flight, const std::string& program,
                         const std::vector<Action>& actions) const {
    int begins = -1, ends = -1;
    for (size_t i = 0; i < actions.size(); ++i) {
      if (RoleOf(actions[i], stage_) == flight.from->role()) begins = static_cast<int>(i);
      if (RoleOf(actions[i], stage_) != flight.to->role()) continue;
      if (ends >= 0) return Bad(name, program, " waits for it twice");
      ends = static_cast<int>(i);
    }
    if (begins < 0 && ends < 0) return absl::OkStatus();
    if (begins < 0 || ends < begins) {
      return Bad(name, program,
                 begins < 0 ? " waits for it and does not start it"
                            : " starts it and does not wait for it after that");
    }
    for (int i = begins + 1; i < ends; ++i) {
      const Function* g = FunctionOf(*f_.module, actions[i], stage_);
      if (actions[i].kind == Action::kReset || (g != nullptr && StatesWritten(*g).count(flight.source))) {
        return Bad(name, program, ", action ", i, " (", ActionToString(actions[i]), ") overwrites @",
                   flight.source, " while it is sent");
      }
    }
    return absl::OkStatus();
  }

  const ProgramFrame& f_;
  const int stage_;
  std::map<std::string, Flight> flights_;
};

}  // namespace

absl::Status CheckFutures(const ProgramFrame& f) {
  for (int s = 0; s < f.stages; ++s) RETURN_IF_ERROR(Flights(f, s).Check());
  return absl::OkStatus();
}

}  // namespace moe::passes
