#include "moe/testing/plan_edits.h"

#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/ir/state.h"
#include "moe/runtime/init.h"

namespace moe::testing {
namespace {

class Editor {
 public:
  Editor(plan::Plan* plan, uint64_t seed) : plan_(*plan), seed_(seed) {}

  std::string Edit() {
    switch (Below(7)) {
      case 0:
      case 1:
      case 2:
        return EditAction();
      case 3:
        return EditMemory();
      case 4:
        return EditNode();
      case 5:
        return EditFlight();
      default:
        return EditOther();
    }
  }

 private:
  int Below(int n) {
    return static_cast<int>(runtime::CounterBits(seed_, 0, counter_++) % static_cast<uint64_t>(n));
  }
  template <typename C>
  auto Pick(C& container) {
    return std::next(container.begin(), Below(static_cast<int>(container.size())));
  }

  std::string EditAction() {
    auto program = Pick(plan_.program.schedule.actions);
    auto& stages = program->second;
    const int s = Below(static_cast<int>(stages.size()));
    std::vector<Action>& actions = stages[s];
    const int i = Below(static_cast<int>(actions.size()));
    Action& a = actions[i];
    const std::string where =
        absl::StrCat(program->first, " stage ", s, ", action ", i, " (", ActionToString(a), "): ");
    switch (Below(8)) {
      case 0:
        actions.erase(actions.begin() + i);
        return where + "dropped";
      case 1:
        actions.insert(actions.begin() + i, Action(a));
        return where + "doubled";
      case 2:
        if (i + 1 >= static_cast<int>(actions.size())) return "";
        std::swap(a, actions[i + 1]);
        return where + "swapped with the next";
      case 3:
        if (a.microbatch < 0) return "";
        ++a.microbatch;
        return where + "of the next microbatch";
      case 4:
        if (a.residual_slot < 0) return "";
        a.residual_slot += Below(2) ? 1 : -1;
        return where + "in another residual slot";
      case 5: {
        if (a.boundary_slots.empty() && a.slot < 0) return "";
        int& slot = a.slot >= 0 ? a.slot : Pick(a.boundary_slots)->second;
        slot += Below(2) ? 1 : -1;
        return where + "in another boundary slot";
      }
      case 6: {
        const int t = Below(static_cast<int>(stages.size()));
        if (t == s) return "";
        stages[t].insert(stages[t].begin() + Below(static_cast<int>(stages[t].size()) + 1), a);
        actions.erase(actions.begin() + i);
        return absl::StrCat(where, "moved to stage ", t);
      }
      default: {
        const int j = Below(static_cast<int>(actions.size()));
        if (j == i) return "";
        Action moved = a;
        actions.erase(actions.begin() + i);
        actions.insert(actions.begin() + j, std::move(moved));
        return absl::StrCat(where, "moved to place ", j);
      }
    }
  }

  std::string EditMemory() {
    auto function = Pick(plan_.program.memory.functions);
    FunctionMemory& m = function->second;
    if (m.values.empty()) return "";
    switch (Below(4)) {
      case 0: {
        auto value = Pick(m.values);
        value->second.offset += Below(2) ? 64 : -64;
        return absl::StrCat("@", function->first, " %", value->first, ": moved by 64 bytes");
      }
      case 1: {
        auto value = Pick(m.values), other = Pick(m.values);
        if (value->second == other->second) return "";
        value->second.offset = other->second.offset;
        return absl::StrCat("@", function->first, " %", value->first, ": moved onto %", other->first);
      }
      case 2: {
        if (m.waits.empty()) return "";
        auto wait = Pick(m.waits);
        const std::string what = absl::StrCat("@", function->first, " %", wait->first, ": no longer waits");
        m.waits.erase(wait);
        return what;
      }
      default: {
        auto value = Pick(m.values);
        value->second.bytes /= 2;
        return absl::StrCat("@", function->first, " %", value->first, ": half the bytes");
      }
    }
  }

  std::string EditNode() {
    const auto& functions = plan_.program.module->functions();
    Function& f = *functions[Below(static_cast<int>(functions.size()))];
    switch (Below(2)) {
      case 0: {
        const std::vector<Node*> nodes = f.Nodes();
        if (nodes.empty()) return "";
        Node* n = nodes[Below(static_cast<int>(nodes.size()))];
        if (n->num_operands() < 2) return "";
        const int a = Below(n->num_operands()), b = Below(n->num_operands());
        const Value x = n->operand(a), y = n->operand(b);
        if (x == y || !(x.type() == y.type()) || !n->Is("optim.accumulate")) return "";
        n->SetOperand(a, y);
        return absl::StrCat("@", f.name(), " %", n->result_name(), ": operand ", a, " is operand ", b);
      }
      default: {
        if (f.num_results() == 0) return "";
        const int r = Below(f.num_results());
        const std::string what =
            absl::StrCat("@", f.name(), ": result ", r, " (", BindingKindName(f.result_binding(r).kind), " ",
                         f.result_binding(r).name, ") dropped");
        if (f.result_binding(r).kind == Binding::kReport) return "";
        f.RemoveResult(r);
        return what;
      }
    }
  }

  // Exchanges in flight: their starts, dones and the bytes that they write.
  std::string EditFlight() {
    std::vector<Node*> starts, dones;
    for (const auto& f : plan_.program.module->functions()) {
      for (Node* n : f->NodesOf("comm.start")) starts.push_back(n);
      for (Node* n : f->NodesOf("comm.done")) dones.push_back(n);
    }
    if (starts.empty() || dones.empty()) return "";
    Node* start = *Pick(starts);
    Node* done = *Pick(dones);
    const auto what = [](const Node* n, absl::string_view how) {
      return absl::StrCat("@", n->function()->name(), " %", n->result_name(), " = ", n->op_name(), ": ", how);
    };
    const auto move = [&](Node* n) {
      const std::vector<Node*> nodes = n->function()->Nodes();
      Node* before = nodes[Below(static_cast<int>(nodes.size()))];
      if (before == n) return std::string();
      n->function()->MoveBefore(n, before);
      return what(n, absl::StrCat("moved before %", before->result_name()));
    };
    switch (Below(6)) {
      case 0:
        start->Set("last", !start->BoolOr("last", false));
        return what(start, "runs in other microbatches");
      case 1:
        return move(start);
      case 2:
        return move(done);
      case 3: {
        std::vector<Value> others;
        for (const auto& n : done->function()->body()) {
          if (n.get() == done) break;
          for (int r = 0; r < n->num_results(); ++r) {
            const Value v = {n.get(), r};
            if (v != done->operand(1) && v.type() == done->operand(1).type()) others.push_back(v);
          }
        }
        if (others.empty()) return "";
        const Value other = *Pick(others);
        done->SetOperand(1, other);
        return what(done, absl::StrCat("holds %", other.name(), " instead"));
      }
      case 4: {
        StageMemory& m =
            plan_.program.memory.stages[Below(static_cast<int>(plan_.program.memory.stages.size()))];
        if (m.futures.empty()) return "";
        auto future = Pick(m.futures);
        const int64_t was = future->second.offset;
        if (Below(2)) {
          future->second.bytes /= 2;
        } else {
          future->second.offset = Pick(m.futures)->second.offset;
          if (future->second.offset == was) return "";
        }
        return absl::StrCat("future ", future->first, ": other bytes");
      }
      default: {
        Node* arg = done->operand(0).node;
        if (!arg->Is("arg")) return "";
        arg->binding.name = "another";
        return what(done, "waits for another future");
      }
    }
  }

  std::string EditOther() {
    StageMemory& m = plan_.program.memory.stages[Below(static_cast<int>(plan_.program.memory.stages.size()))];
    switch (Below(4)) {
      case 0: {
        auto slots = Pick(m.residuals);
        --slots->second.count;
        return absl::StrCat("chunk ", slots->first, ": one residual slot less");
      }
      case 1: {
        auto state = Pick(m.states);
        state->second.offset = 0;
        return absl::StrCat("state ", state->first, ": moved to the start");
      }
      case 2:
        m.frame_bytes /= 2;
        return "half the frame";
      default: {
        int& stage = *Pick(plan_.program.schedule.chunk_stage);
        ++stage;
        return absl::StrCat("a chunk moved to stage ", stage);
      }
    }
  }

  plan::Plan& plan_;
  const uint64_t seed_;
  uint64_t counter_ = 0;
};

}  // namespace

std::string RandomEdit(plan::Plan* plan, uint64_t seed) { return Editor(plan, seed).Edit(); }

}  // namespace moe::testing
