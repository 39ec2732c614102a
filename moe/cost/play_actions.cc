#include "moe/cost/play_actions.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/cost/node_cost.h"
#include "moe/cost/step_runs.h"
#include "moe/ir/conversion_parts.h"

namespace moe::cost {
namespace {

StepSpan::Kind KindOf(Action::Kind kind) {
  switch (kind) {
    case Action::kForward:
      return StepSpan::kForward;
    case Action::kBackward:
      return StepSpan::kBackward;
    case Action::kInputGrad:
      return StepSpan::kInputGrad;
    case Action::kWeightGrad:
      return StepSpan::kWeightGrad;
    case Action::kSend:
    case Action::kRecv:
      return StepSpan::kTransfer;
    case Action::kUpdate:
      return StepSpan::kUpdate;
    case Action::kReset:
    case Action::kReport:
      return StepSpan::kOther;
  }
  return StepSpan::kOther;
}

// The nodes of a function, as its two queues take them.
class FunctionCost {
 public:
  FunctionCost(const Function& f, const Mesh& mesh, const Target& target) {
    std::map<const Node*, int> number;
    for (const auto& n : f.body()) {
      Item item;
      item.seconds = NodeSeconds(*n, mesh, target);
      item.exchanges = n->queue == Queue::kComm;
      item.waits_for_last_run = !RunsIn(*n, false);
      if (item.exchanges) {
        if (CrossesFunctions(*n)) item.futures = FuturesOf(f, *n);
      } else {
        for (const Value& v : n->operands()) {
          const auto it = number.find(v.node);
          if (it != number.end() && items_[it->second].exchanges)
            item.after = std::max(item.after, it->second);
          if (n->Is("comm.done") && v.type().future && v.node->Is("arg")) {
            item.futures = {v.node->binding.name};
          }
        }
      }
      number[n.get()] = static_cast<int>(items_.size());
      items_.push_back(std::move(item));
    }
  }

  // When a run that begins at `begin` is done.
  double Run(double begin, bool last_run, CommQueueState* queue) const {
    double now = begin, own = begin;
    std::vector<double> end(items_.size(), begin);
    for (size_t i = 0; i < items_.size(); ++i) {
      const Item& item = items_[i];
      if (!item.exchanges) {
        if (item.after >= 0) now = std::max(now, end[item.after]);
        for (const std::string& future : item.futures) {
          const auto it = queue->in_flight.find(future);
          if (it != queue->in_flight.end()) now = std::max(now, it->second);
        }
        end[i] = now += item.seconds;
        continue;
      }
      if (item.waits_for_last_run && !last_run) continue;
      end[i] = queue->free_at = std::max(queue->free_at, now) + item.seconds;
      if (item.futures.empty()) own = end[i];
      for (const std::string& future : item.futures) queue->in_flight[future] = end[i];
    }
    return std::max(now, own);
  }

 private:
  struct Item {
    double seconds = 0;
    bool exchanges = false;  // on the communication queue
    bool waits_for_last_run = false;
    int after = -1;  // of the compute queue: the last exchange that it reads
    std::vector<std::string>
        futures;  // that cross functions: given by an exchange, read by what waits for it
  };

  static std::vector<std::string> FuturesOf(const Function& f, const Node& n) {
    std::vector<std::string> names;
    for (int i = 0; i < f.num_results(); ++i) {
      if (f.result(i).node == &n) names.push_back(f.result_binding(i).name);
    }
    return names;
  }

  std::vector<Item> items_;
};

class Player {
 public:
  Player(const Program& program, const Durations& durations, std::vector<std::vector<Action>> actions)
      : schedule_(program.schedule), durations_(durations), actions_(std::move(actions)) {
    for (const auto& row : actions_) {
      last_.push_back(LastRuns(row));
      for (const Action& a : row) {
        transfers_ |= a.kind == Action::kRecv;
      }
    }
    for (const auto& f : program.module->functions()) {
      if (f->role().kind == FunctionKind::kUpdate) stage_reduces_ |= !f->NodesOf("comm.stage_reduce").empty();
    }
  }

  std::vector<std::vector<StepSpan>> Play() {
    const size_t rows = actions_.size();
    next_.assign(rows, 0), clock_.assign(rows, 0), spans_.assign(rows, {}), queues_.assign(rows, {});
    for (bool progress = true; progress;) {
      progress = false;
      for (size_t s = 0; s < rows; ++s) {
        while (next_[s] < actions_[s].size() && Step(static_cast<int>(s))) progress = true;
      }
    }
    return std::move(spans_);
  }

 private:
  using Message = std::tuple<std::string, int, int>;  // boundary, microbatch, receiving stage
  using Done = std::tuple<char, int, int>;            // 'F' or 'B', chunk, microbatch

  double EndOf(const Action& a, int s, double begin) {
    return begin + durations_.action({a, s, begin, last_[s][next_[s]]}, &queues_[s]);
  }

  bool Step(int s) {
    const Action& a = actions_[s][next_[s]];
    double start = clock_[s], end = start;
    switch (a.kind) {
      case Action::kSend:
        arrival_[{a.boundary, a.microbatch, a.peer_stage}] = {start, start + durations_.transfer(a)};
        ++next_[s];
        return true;
      case Action::kRecv: {
        auto it = arrival_.find({a.boundary, a.microbatch, s});
        if (it == arrival_.end()) return false;
        // The transfer shows where it happens, not where the receiver waits for it: that is idle time.
        const auto [sent, arrived] = it->second;
        if (arrived > sent) {
          spans_[s].push_back({StepSpan::kTransfer, a.chunk, a.microbatch, sent, arrived, ActionToString(a)});
        }
        clock_[s] = std::max(start, arrived);
        ++next_[s];
        return true;
      }
      case Action::kUpdate:
        if (stage_reduces_) {
          for (size_t t = 0; t < actions_.size(); ++t) {
            if (next_[t] >= actions_[t].size()) continue;
            if (actions_[t][next_[t]].kind != Action::kUpdate) return false;
            start = std::max(start, clock_[t]);
          }
          stage_reduces_ = false;  // the others start now too
          for (size_t t = 0; t < actions_.size(); ++t) {
            if (next_[t] < actions_[t].size()) clock_[t] = start;
          }
        }
        end = EndOf(a, s, start);
        break;
      default: {
        if (!transfers_ && !Ready(a, s, &start)) return false;
        end = EndOf(a, s, start);
        if (a.kind == Action::kForward) done_[{'F', a.chunk, a.microbatch}] = {end, s};
        if (a.kind == Action::kBackward || a.kind == Action::kInputGrad) {
          done_[{'B', a.chunk, a.microbatch}] = {end, s};
        }
      }
    }
    clock_[s] = end;
    ++next_[s];
    if (end > start)
      spans_[s].push_back({KindOf(a.kind), a.chunk, a.microbatch, start, end, ActionToString(a)});
    return true;
  }

  // Without transfers among the actions: the table's own rules. False while something is missing.
  bool Ready(const Action& a, int s, double* start) const {
    const auto after = [&](char kind, int chunk) {
      auto it = done_.find({kind, chunk, a.microbatch});
      if (it == done_.end()) return false;
      const auto [end, stage] = it->second;
      *start = std::max(*start, end + (stage == s ? 0 : durations_.transfer(a)));
      return true;
    };
    switch (a.kind) {
      case Action::kForward:
        return schedule_.IsFirst(a.chunk) || after('F', a.chunk - 1);
      case Action::kBackward:
      case Action::kInputGrad:
        return after('F', a.chunk) && (schedule_.IsLast(a.chunk) || after('B', a.chunk + 1));
      case Action::kWeightGrad:
        return after('B', a.chunk);
      default:
        return true;
    }
  }

  const Schedule& schedule_;
  const Durations& durations_;
  const std::vector<std::vector<Action>> actions_;
  std::vector<std::vector<bool>> last_;
  bool transfers_ = false, stage_reduces_ = false;
  std::vector<size_t> next_;
  std::vector<double> clock_;
  std::vector<CommQueueState> queues_;
  std::map<Message, std::pair<double, double>> arrival_;  // sent, arrived
  std::map<Done, std::pair<double, int>> done_;
  std::vector<std::vector<StepSpan>> spans_;
};

}  // namespace

Durations UnitDurations() {
  Durations d;
  d.action = [](const ActionRun& run, CommQueueState*) -> double {
    switch (run.action.kind) {
      case Action::kBackward:
        return 2;
      case Action::kForward:
      case Action::kInputGrad:
      case Action::kWeightGrad:
      case Action::kUpdate:
        return 1;
      default:
        return 0;
    }
  };
  d.transfer = [](const Action&) { return 0.0; };
  d.source = "planned: forward 1, backward 2";
  return d;
}

Durations CostDurations(const Program& program, const Target& target) {
  const Mesh& mesh = program.module->mesh();
  std::map<FunctionRole, FunctionCost> functions;
  for (const auto& f : program.module->functions()) functions.try_emplace(f->role(), *f, mesh, target);
  const size_t stages = std::max<size_t>(1, program.schedule.table.size());
  std::map<std::string, double> boundary;
  for (size_t s = 0; s < stages; ++s) {
    for (const BoundarySend& b : BoundariesSentBy(program, static_cast<int>(s))) boundary[b.name] = b.bytes;
  }
  Durations d;
  d.action = [functions = std::move(functions)](const ActionRun& run, CommQueueState* queue) {
    const FunctionRole role = RoleOf(run.action, run.stage);
    const auto it = functions.find(role);
    return role.kind == FunctionKind::kOther || it == functions.end()
               ? 0
               : it->second.Run(run.begin, run.last, queue) - run.begin;
  };
  const Link link = LinkOf(mesh.Alias("pp"), mesh, target);
  d.transfer = [boundary = std::move(boundary), link](const Action& a) {
    const auto it = boundary.find(a.boundary);
    return link.Seconds(1, it == boundary.end() ? 0 : it->second);
  };
  d.source = absl::StrCat("planned: costs of target ", target.name);
  d.seconds = true;
  return d;
}

void Measure(StepTimeline* t) {
  double busy = 0;
  constexpr double kInf = std::numeric_limits<double>::infinity();
  t->begin = t->pipeline_begin = kInf, t->end = t->pipeline_end = -kInf;
  for (std::vector<StepSpan>& row : t->spans) {
    std::stable_sort(row.begin(), row.end(),
                     [](const StepSpan& a, const StepSpan& b) { return a.begin < b.begin; });
    for (const StepSpan& s : row) {
      t->begin = std::min(t->begin, s.begin), t->end = std::max(t->end, s.end);
      if (!IsPipelineWork(s)) continue;
      t->pipeline_begin = std::min(t->pipeline_begin, s.begin);
      t->pipeline_end = std::max(t->pipeline_end, s.end);
      busy += s.end - s.begin;
    }
  }
  if (t->begin == kInf) t->begin = t->end = 0;
  if (t->pipeline_begin == kInf) t->pipeline_begin = t->pipeline_end = t->begin;
  const double span = (t->pipeline_end - t->pipeline_begin) * static_cast<double>(t->spans.size());
  t->bubble = span > 0 ? std::max(0.0, 1 - busy / span) : 0;
}

StepTimeline PlayActions(const Program& program, const Durations& durations, const std::string& name) {
  StepTimeline t;
  t.spans = Player(program, durations, ActionsOf(program, name)).Play();
  Measure(&t);
  return t;
}

}  // namespace moe::cost
