#include "moe/passes/schedule/bubble.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/passes/schedule/schedule_table.h"

namespace moe::passes {
namespace {

class Simulator {
 public:
  Simulator(const Schedule& schedule, const BubbleTimes& times) : schedule_(schedule), times_(times) {}

  BubbleReport Run() {
    const size_t stages = schedule_.table.size();
    std::vector<size_t> next(stages, 0);
    std::vector<double> clock(stages, 0), busy(stages, 0);
    std::vector<int> held(stages, 0);
    BubbleReport report;
    report.in_flight.assign(stages, 0);
    for (bool progress = true; progress;) {  // a valid table always finishes
      progress = false;
      for (size_t s = 0; s < stages; ++s) {
        for (double ready; (ready = ReadyAt(s, next[s])) >= 0;) {
          const size_t count = BlockAt(s, next[s]);
          const double start = std::max(clock[s], ready);
          double time = 0;
          for (size_t i = 0; i < count; ++i) time += TimeOf(schedule_.table[s][next[s] + i].kind);
          for (size_t i = 0; i < count; ++i) {
            const Schedule::Cell& cell = schedule_.table[s][next[s]++];
            End(cell, start + time);
            held[s] += cell.kind == 'F';
            report.in_flight[s] = std::max(report.in_flight[s], held[s]);
            held[s] -= cell.kind == 'B' || cell.kind == 'W';
          }
          clock[s] = start + time;
          busy[s] += time;
          progress = true;
        }
      }
    }
    for (size_t s = 0; s < stages; ++s) {
      report.makespan = std::max(report.makespan, clock[s]);
      report.work = std::max(report.work, busy[s]);
    }
    report.bubble = report.makespan > 0 ? 1 - report.work / report.makespan : 0;
    return report;
  }

 private:
  double TimeOf(char kind) const {
    switch (kind) {
      case 'F':
        return times_.forward;
      case 'I':
        return times_.input_grad;
      case 'W':
        return times_.weight_grad;
      default:
        return times_.input_grad + times_.weight_grad;
    }
  }

  // When what `cell` needs is on its stage; false while it is not computed.
  bool Ready(const Schedule::Cell& cell, double* ready) const {
    *ready = 0;
    const auto needs = [&](char kind, int chunk) {
      auto it = end_.find({kind, chunk, cell.microbatch});
      if (it == end_.end()) return false;
      const bool moves = schedule_.chunk_stage[chunk] != schedule_.chunk_stage[cell.chunk];
      *ready = std::max(*ready, it->second + (moves ? times_.transfer : 0));
      return true;
    };
    if (cell.kind == 'F') return schedule_.IsFirst(cell.chunk) || needs('F', cell.chunk - 1);
    if (cell.kind == 'W') return needs('I', cell.chunk);
    return needs('F', cell.chunk) && (schedule_.IsLast(cell.chunk) || needs('I', cell.chunk + 1));
  }

  // Cells that run as one from `at` on.
  size_t BlockAt(size_t stage, size_t at) const {
    const auto& row = schedule_.table[stage];
    const bool pair = times_.together && at + 1 < row.size() && row[at].kind == 'F' &&
                      row[at + 1].kind == 'B' &&
                      (row[at].chunk != row[at + 1].chunk || row[at].microbatch != row[at + 1].microbatch);
    return pair ? 2 : 1;
  }

  // When all that the block needs is there; negative while something is not computed, or behind the row's
  // end.
  double ReadyAt(size_t stage, size_t at) const {
    const auto& row = schedule_.table[stage];
    if (at >= row.size()) return -1;
    double latest = 0;
    for (size_t i = 0; i < BlockAt(stage, at); ++i) {
      double ready;
      if (!Ready(row[at + i], &ready)) return -1;
      latest = std::max(latest, ready);
    }
    return latest;
  }

  void End(const Schedule::Cell& cell, double end) {
    end_[{cell.kind, cell.chunk, cell.microbatch}] = end;
    if (cell.kind == 'B')
      end_[{'I', cell.chunk, cell.microbatch}] = end;  // a whole backward hands over at its end
  }

  const Schedule& schedule_;
  const BubbleTimes& times_;
  std::map<std::tuple<char, int, int>, double> end_;  // kind, chunk, microbatch
};

}  // namespace

absl::StatusOr<BubbleReport> SimulateTable(const Schedule& schedule, const BubbleTimes& times) {
  RETURN_IF_ERROR(Annotate(ValidateTable(schedule), absl::StrCat("schedule ", schedule.name)));
  return Simulator(schedule, times).Run();
}

std::string BubbleTableMarkdown() {
  using Kind = strategy::ScheduleKind;
  struct Column {
    strategy::ScheduleKind schedule;
    int chunks;
  };
  constexpr Column kColumns[] = {{Kind::kGPipe, 1},       {Kind::k1F1B, 1}, {Kind::kInterleaved, 2},
                                 {Kind::kInterleaved, 4}, {Kind::kZbH1, 1}, {Kind::kZbV, 2},
                                 {Kind::kDualPipe, 2}};
  constexpr std::pair<int, int> kRows[] = {{2, 4}, {2, 8}, {4, 8}, {4, 16}, {8, 16}, {8, 32}, {16, 64}};
  std::string out = "| pp | microbatches |", rule = "|---|---|";
  for (const Column& c : kColumns) {
    absl::StrAppend(&out, " ", strategy::Name(c.schedule),
                    c.chunks > 1 ? absl::StrCat(", v = ", c.chunks) : "", " |");
    absl::StrAppend(&rule, "---|");
  }
  absl::StrAppend(&out, "\n", rule, "\n");
  for (const auto& [stages, microbatches] : kRows) {
    absl::StrAppend(&out, "| ", stages, " | ", microbatches, " |");
    for (const Column& c : kColumns) {
      strategy::Strategy s;
      s.pp = stages;
      s.microbatches = microbatches;
      s.virtual_chunks = c.chunks;
      s.schedule = c.schedule;
      const absl::StatusOr<Schedule> schedule = MakeSchedule(s);
      const absl::StatusOr<BubbleReport> r =
          schedule.ok() ? SimulateTable(*schedule, BubbleTimes()) : schedule.status();
      if (!r.ok()) {
        absl::StrAppend(&out, " ", r.status().message(), " |");
        continue;
      }
      const int held = *std::max_element(r->in_flight.begin(), r->in_flight.end());
      absl::StrAppend(&out, absl::StrFormat(" %.1f%% / %.4g |", 100 * r->bubble, 1.0 * held / c.chunks));
    }
    absl::StrAppend(&out, "\n");
  }
  return out;
}

}  // namespace moe::passes
