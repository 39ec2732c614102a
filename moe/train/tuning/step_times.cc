#include "moe/train/tuning/step_times.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "moe/base/clock.h"
#include "moe/base/status.h"
#include "moe/cost/play_actions.h"

namespace moe::train {
namespace {

constexpr double kNano = 1e-9;

// "F0.3" -> "F0"; "update" -> "update".
std::string KindAndChunk(absl::string_view action) { return std::string(action.substr(0, action.find('.'))); }

bool IsTransfer(absl::string_view action) {
  return absl::StartsWith(action, "send ") || absl::StartsWith(action, "recv ");
}

// Both ends of a message: "act.0 mb3".
std::string MessageOf(absl::string_view action) {
  action.remove_prefix(5);
  return std::string(action.substr(0, action.rfind(action.find(" -> ") != action.npos ? " -> " : " <- ")));
}

// One run of an action on the ranks of its stage.
struct ActionRun {
  std::map<int64_t, double> compute;  // by rank
  double exchange = 0;
};

class Reader {
 public:
  Reader(const runtime::Trace& trace, const Mesh& mesh, int64_t from, int64_t to)
      : trace_(trace), mesh_(mesh), from_(from), to_(to) {}

  StepTimes Read() {
    for (int64_t rank = 0; rank < trace_.ranks(); ++rank) ReadSends(rank);
    for (int64_t rank = 0; rank < trace_.ranks(); ++rank) ReadRank(rank);
    for (const auto& [key, exchange] : exchanges_) runs_[exchange.action].exchange += exchange.least;
    StepTimes out;
    std::map<std::pair<int, std::string>, int> count;
    for (const auto& [key, run] : runs_) {
      const std::pair<int, std::string> action = {std::get<0>(key), KindAndChunk(std::get<1>(key))};
      ActionTime& t = out.actions[action];
      ++count[action];
      double slowest = 0;
      for (const auto& [rank, seconds] : run.compute) {
        slowest = std::max(slowest, seconds);
        t.all += seconds;
      }
      t.slowest += slowest;
      t.exchange += run.exchange;
    }
    for (const auto& [key, seconds] : transfers_) {
      const std::pair<int, std::string> action = {std::get<0>(key), "recv"};
      ++count[action];
      out.actions[action].exchange += seconds;
    }
    for (auto& [action, t] : out.actions) {
      const double n = count[action];
      t.slowest /= n, t.all /= n, t.exchange /= n;
    }
    return out;
  }

 private:
  using Run = std::tuple<int, std::string, int>;  // stage, action, which of several steps
  struct Exchange {
    double least = 0;  // over the ranks of the stage: what the last to come takes
    Run action;
  };

  bool Within(const runtime::TraceEvent& e) const { return e.begin_ns >= from_ && e.begin_ns < to_; }

  void ReadSends(int64_t rank) {
    std::map<std::string, int> seen;
    for (const runtime::TraceEvent& e : trace_.events(rank)) {
      if (e.lane != 2 || !Within(e) || !absl::StartsWith(e.name, "send ")) continue;
      const std::string message = MessageOf(e.name);
      sent_[{rank, message, seen[message]++}] = e.begin_ns;
    }
  }

  void ReadRank(int64_t rank) {
    const int stage = mesh_.Stage(rank);
    std::vector<const runtime::TraceEvent*> actions, kernels, exchanges;
    for (const runtime::TraceEvent& e : trace_.events(rank)) {
      if (!Within(e)) continue;
      (e.lane == 2                                    ? actions
       : e.category == runtime::Category::kCollective ? exchanges
                                                      : kernels)
          .push_back(&e);
    }
    const auto by_begin = [](const runtime::TraceEvent* a, const runtime::TraceEvent* b) {
      return a->begin_ns < b->begin_ns;
    };
    for (auto* list : {&actions, &kernels, &exchanges}) std::sort(list->begin(), list->end(), by_begin);
    std::map<std::string, int> seen;
    size_t k = 0, x = 0;
    for (size_t i = 0; i < actions.size(); ++i) {
      const runtime::TraceEvent& a = *actions[i];
      const int number = seen[a.name]++;
      if (absl::StartsWith(a.name, "recv ")) ReadTransfer(rank, stage, a, number);
      // What begins before the next action does belongs to this one.
      const int64_t end = i + 1 < actions.size() ? actions[i + 1]->begin_ns : INT64_MAX;
      const Run run = {stage, a.name, number};
      double compute = 0;
      for (; k < kernels.size() && kernels[k]->begin_ns < end; ++k) {
        compute += static_cast<double>(kernels[k]->end_ns - kernels[k]->begin_ns) * kNano;
      }
      if (!IsTransfer(a.name)) runs_[run].compute[rank] = compute;
      for (; x < exchanges.size() && exchanges[x]->begin_ns < end; ++x) {
        // What is on its way while a message is waited for costs the stage nothing more.
        if (!IsTransfer(a.name)) ReadExchange(rank, *exchanges[x], kernels, run);
      }
    }
  }

  void ReadExchange(int64_t rank, const runtime::TraceEvent& e,
                    const std::vector<const runtime::TraceEvent*>& kernels, const Run& run) {
    int64_t exposed = e.end_ns - e.begin_ns;
    auto kernel = std::partition_point(kernels.begin(), kernels.end(),
                                       [&](const runtime::TraceEvent* k) { return k->end_ns <= e.begin_ns; });
    for (; kernel != kernels.end() && (*kernel)->begin_ns < e.end_ns; ++kernel) {
      exposed -= std::min(e.end_ns, (*kernel)->end_ns) - std::max(e.begin_ns, (*kernel)->begin_ns);
    }
    const double seconds = static_cast<double>(exposed) * kNano;
    const std::string what = absl::StrCat(e.detail != nullptr ? *e.detail : e.name, "/", e.microbatch);
    const int number = met_[{rank, what}]++;
    const auto [it, first] = exchanges_.try_emplace({std::get<0>(run), what, number}, Exchange{seconds, run});
    if (!first) it->second.least = std::min(it->second.least, seconds);
  }

  // From when both are there until it has arrived.
  void ReadTransfer(int64_t rank, int stage, const runtime::TraceEvent& recv, int number) {
    const std::string message = MessageOf(recv.name);
    const int64_t per_stage = mesh_.ranks_per_stage();
    for (int s = 0; s < mesh_.num_stages(); ++s) {
      const auto sent = sent_.find({s * per_stage + rank % per_stage, message, number});
      if (s == stage || sent == sent_.end()) continue;
      const double seconds = std::max<double>(0, recv.end_ns - std::max(recv.begin_ns, sent->second)) * kNano;
      const auto [it, first] = transfers_.try_emplace({stage, message, number}, seconds);
      if (!first) it->second = std::min(it->second, seconds);
    }
  }

  const runtime::Trace& trace_;
  const Mesh& mesh_;
  const int64_t from_, to_;
  std::map<std::tuple<int64_t, std::string, int>, int64_t> sent_;  // rank, message, which: when
  std::map<std::tuple<int, std::string, int>, double> transfers_;  // receiving stage, message, which
  std::map<std::pair<int64_t, std::string>, int> met_;
  std::map<std::tuple<int, std::string, int>, Exchange> exchanges_;  // stage, what, which
  std::map<Run, ActionRun> runs_;
};

std::string Milliseconds(const CostLine& line) {
  return absl::StrFormat("%.1f + %.1f m ms", 1e3 * line.fixed, 1e3 * line.per_sample);
}

// Runs once a microbatch, not once a step.
bool IsOfMicrobatch(const std::string& action) { return action != "update" && action != "report"; }

}  // namespace

StepTimes TimesOf(const runtime::Trace& trace, const Mesh& mesh, int64_t from, int64_t to) {
  return Reader(trace, mesh, from, to).Read();
}

CostLine FitLine(const std::map<int64_t, double>& points) {
  if (points.empty()) return {};
  double n = 0, x = 0, y = 0, xx = 0, xy = 0;
  for (const auto& [samples, t] : points) {
    const double m = static_cast<double>(samples);
    n += 1, x += m, y += t, xx += m * m, xy += m * t;
  }
  const double spread = n * xx - x * x;
  CostLine line;
  line.per_sample = spread > 0 ? (n * xy - x * y) / spread : xy / xx;
  line.fixed = spread > 0 ? (y - line.per_sample * x) / n : 0;
  if (line.fixed < 0) line = {0, xy / xx};
  if (line.per_sample < 0) line = {y / n, 0};
  return line;
}

StepTimes MicroBatchCosts::At(int64_t micro_batch_size) const {
  struct Points {
    std::map<int64_t, double> slowest, all, exchange;
  };
  std::map<std::pair<int, std::string>, Points> points;
  for (const auto& [size, times] : measured_) {
    for (const auto& [action, t] : times.actions) {
      Points& p = points[action];
      p.slowest[size] = t.slowest, p.all[size] = t.all, p.exchange[size] = t.exchange;
    }
  }
  StepTimes out;
  const double m = static_cast<double>(micro_batch_size);
  for (const auto& [action, p] : points) {
    out.actions[action] = {FitLine(p.slowest).At(m), FitLine(p.all).At(m), FitLine(p.exchange).At(m)};
  }
  return out;
}

std::string MicroBatchCosts::Describe() const {
  struct Stage {
    std::map<int64_t, double> compute, exchange, step;
  };
  std::map<int, Stage> stages;
  std::vector<std::string> parts;
  std::vector<int64_t> sizes;
  for (const auto& [size, times] : measured_) {
    sizes.push_back(size);
    for (const auto& [action, t] : times.actions) {
      Stage& s = stages[action.first];
      if (IsOfMicrobatch(action.second)) {
        s.compute[size] += t.slowest;
        s.exchange[size] += t.exchange;
      } else {
        s.step[size] += t.slowest + t.exchange;
      }
    }
  }
  for (const auto& [number, s] : stages) {
    double step = 0;
    for (const auto& [_, seconds] : s.step) step += seconds / static_cast<double>(s.step.size());
    parts.push_back(absl::StrFormat("stage %d: compute %s, exchanges %s, and %.1f ms a step", number,
                                    Milliseconds(FitLine(s.compute)), Milliseconds(FitLine(s.exchange)),
                                    1e3 * step));
  }
  return absl::StrCat("measured at ", absl::StrJoin(sizes, ", "),
                      "; of m samples: ", absl::StrJoin(parts, "; "));
}

StepPrediction PlayStep(const Program& program, const StepTimes& times, int64_t cores) {
  const Mesh& mesh = program.module->mesh();
  const double of_stage = static_cast<double>(std::max<int64_t>(1, std::min(cores, mesh.ranks_per_stage())));
  const auto find = [&](int stage, const std::string& action) {
    const auto it = times.actions.find({stage, action});
    return it == times.actions.end() ? ActionTime() : it->second;
  };
  double work = 0;  // of all ranks
  cost::Durations durations;
  durations.action = [&](const cost::ActionRun& run, cost::CommQueueState*) {
    const ActionTime t = find(run.stage, KindAndChunk(ActionToString(run.action)));
    work += t.all + t.exchange;
    return std::max(t.slowest, t.all / of_stage) + t.exchange;
  };
  durations.transfer = [&](const Action& send) { return find(send.peer_stage, "recv").exchange; };
  const cost::StepTimeline played = cost::PlayActions(program, durations);
  StepPrediction out = {played.end - played.begin, played.bubble};
  if (cores < mesh.num_ranks()) {
    const double n = static_cast<double>(std::max<int64_t>(1, cores));
    out.seconds = std::max(out.seconds, work / n);
    out.bubble = out.seconds > 0 ? std::max(0.0, 1 - work / n / out.seconds) : 0;
  }
  return out;
}

void ExecutorMeter::Start() {
  starts_ = !executor_->tracing();
  started_ = starts_ ? executor_->StartTrace(/*steps=*/1) : absl::OkStatus();
  from_ = NowNanos();
}

absl::StatusOr<StepTimes> ExecutorMeter::Stop() {
  const int64_t to = NowNanos();
  if (starts_) executor_->StopTrace();
  RETURN_IF_ERROR(started_);
  ASSIGN_OR_RETURN(const runtime::Trace trace, executor_->GatherTrace());
  return TimesOf(trace, executor_->program().module->mesh(), from_, to);
}

}  // namespace moe::train
