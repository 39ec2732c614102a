#include "moe/passes/schedule/schedules.h"

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

namespace moe::passes {
namespace {

using Cell = Schedule::Cell;

// The greedy list schedule behind ZeroBubbleVTable.
class VScheduler {
 public:
  VScheduler(int stages, int microbatches) : stages_(stages), microbatches_(microbatches), rows_(stages) {
    for (auto* ends : {&forward_, &input_}) ends->resize(2 * stages);
    weights_.assign(2 * stages, 0);
    held_.assign(stages, 0);
    clock_.assign(stages, 0);
  }

  ScheduleTable Run() {
    for (int64_t left = int64_t{6} * stages_ * microbatches_; left > 0; --left) {
      std::optional<Choice> best;
      for (int s = 0; s < stages_; ++s) Consider(s, &best);
      Execute(*best);  // a stage never fills up with what cannot go on, so one can always start
    }
    return std::move(rows_);
  }

 private:
  struct Choice {
    std::tuple<int, int, int, int> order;  // start, kind, tie, stage: smallest first
    int stage, start;
    Cell cell;
  };

  int Count(const std::vector<std::vector<int>>& ends, int chunk) const {
    return static_cast<int>(ends[chunk].size());
  }
  // When cell (chunk, microbatch) of a kind ended, or -1.
  static int EndOf(const std::vector<std::vector<int>>& ends, int chunk, int microbatch) {
    return microbatch < static_cast<int>(ends[chunk].size()) ? ends[chunk][microbatch] : -1;
  }

  void Consider(int s, std::optional<Choice>* best) const {
    const int last = 2 * stages_ - 1;
    const auto offer = [&](char kind, int chunk, int microbatch, int ready) {
      const int start = std::max(clock_[s], ready);
      const int rank = kind == 'I' ? 0 : kind == 'F' ? 1 : 2;
      Choice c{{start, rank, kind == 'W' ? microbatch : -chunk, s}, s, start, {kind, chunk, microbatch}};
      if (!*best || c.order < (*best)->order) *best = c;
    };
    for (const int chunk : {s, last - s}) {
      const int f = Count(forward_, chunk), i = Count(input_, chunk), w = weights_[chunk];
      if (f < microbatches_ && held_[s] < 2 * stages_ && !TakesTheLastPlace(s, chunk)) {
        const int ready = chunk == 0 ? 0 : EndOf(forward_, chunk - 1, f);
        if (ready >= 0) offer('F', chunk, f, ready);
      }
      if (i < f) {
        const int ready = chunk == last ? forward_[chunk][i] : EndOf(input_, chunk + 1, i);
        if (ready >= 0) offer('I', chunk, i, std::max(ready, forward_[chunk][i]));
      }
      if (w < i) offer('W', chunk, w, input_[chunk][w]);
    }
  }

  // The way down leaves a place for the way up while that is behind, or nothing would ever be released.
  bool TakesTheLastPlace(int s, int chunk) const {
    const int up = 2 * stages_ - 1 - s;
    return chunk == s && held_[s] >= 2 * stages_ - 1 && Count(forward_, up) < Count(forward_, chunk);
  }

  void Execute(const Choice& c) {
    const int end = c.start + 1;
    clock_[c.stage] = end;
    rows_[c.stage].push_back(c.cell);
    if (c.cell.kind == 'F') {
      forward_[c.cell.chunk].push_back(end);
      ++held_[c.stage];
    } else if (c.cell.kind == 'I') {
      input_[c.cell.chunk].push_back(end);
    } else {
      ++weights_[c.cell.chunk];
      --held_[c.stage];
    }
  }

  const int stages_, microbatches_;
  std::vector<std::vector<int>> forward_, input_;  // by chunk: when each microbatch ended
  std::vector<int> weights_;                       // by chunk: how many ran
  std::vector<int> held_, clock_;                  // by stage
  ScheduleTable rows_;
};

}  // namespace

ScheduleTable InterleavedTable(int stages, int chunks_per_stage, int microbatches) {
  ScheduleTable table(stages);
  const int total = chunks_per_stage * microbatches;
  // The k-th forward or backward of a stage: groups of `stages` microbatches go through all its chunks in
  // turn.
  const auto cell = [&](char kind, int k, int stage) {
    const int in_group = k % (stages * chunks_per_stage), group = k / (stages * chunks_per_stage);
    const int turn = in_group / stages;
    const int v = kind == 'F' ? turn : chunks_per_stage - 1 - turn;
    return Cell{kind, v * stages + stage, group * stages + in_group % stages};
  };
  for (int s = 0; s < stages; ++s) {
    const int warmup = std::min(total, 2 * (stages - 1 - s) + (chunks_per_stage - 1) * stages);
    int backward = 0;
    for (int k = 0; k < total; ++k) {
      table[s].push_back(cell('F', k, s));
      if (k >= warmup) table[s].push_back(cell('B', backward++, s));
    }
    while (backward < total) table[s].push_back(cell('B', backward++, s));
  }
  return table;
}

ScheduleTable ZeroBubbleH1Table(int stages, int microbatches) {
  ScheduleTable table(stages);
  for (int s = 0; s < stages; ++s) {
    const int warmup = std::min(stages - 1 - s, microbatches);
    int forward = 0, weight = 0;
    while (forward < warmup) table[s].push_back({'F', s, forward++});
    for (int input = 0; input < microbatches; ++input) {
      if (forward < microbatches) table[s].push_back({'F', s, forward++});
      table[s].push_back({'I', s, input});
      if (input >= s) table[s].push_back({'W', s, weight++});
    }
    while (weight < microbatches) table[s].push_back({'W', s, weight++});
  }
  return table;
}

ScheduleTable ZeroBubbleVTable(int stages, int microbatches) {
  return VScheduler(stages, microbatches).Run();
}

ScheduleTable DualPipeTable(int stages, int microbatches) {
  ScheduleTable table(stages);
  const int half = stages / 2, each = microbatches / 2;
  for (int s = 0; s < stages; ++s) {
    // What is said of the near direction, whose first chunk is on this half of the stages, holds for both
    // halves by symmetry. `depth`: stages between this one and the near end.
    const bool upper = s >= half;
    const int depth = std::min(s, stages - 1 - s);
    std::vector<Cell>& row = table[s];
    int forwards[2] = {0, 0}, backwards[2] = {0, 0};
    std::vector<Cell> pending;  // weight gradients that are still to run, in order
    size_t next_weight = 0;
    const auto chunk = [&](int far) {
      const bool up = upper != (far == 1);
      return up ? stages + (stages - 1 - s) : s;
    };
    const auto microbatch = [&](int far, int index) { return (upper != (far == 1) ? each : 0) + index; };
    const auto forward = [&](int far) { row.push_back({'F', chunk(far), microbatch(far, forwards[far]++)}); };
    const auto backward = [&](int far, bool split) {
      const int c = chunk(far), m = microbatch(far, backwards[far]++);
      row.push_back({split ? 'I' : 'B', c, m});
      if (split) pending.push_back({'W', c, m});
    };
    const auto weight = [&] {
      if (next_weight < pending.size()) row.push_back(pending[next_weight++]);
    };
    const int inner = half - 1 - depth;  // stages between this one and the middle
    // Fill: the near direction first, until the far one's first microbatch has come across.
    for (int i = 0; i < 2 * inner; ++i) forward(0);
    for (int i = 0; i < depth + 1; ++i) forward(0), forward(1);
    // The far direction's backwards arrive before the near one's; their weight gradients wait for a gap.
    for (int i = 0; i < inner; ++i) backward(1, true), weight(), forward(1);
    // Steady: a forward of one direction beside a backward of the other.
    for (int i = 0; i < each - stages + depth + 1; ++i) {
      forward(0), backward(1, false);
      forward(1), backward(0, false);
    }
    // Drain, with weight gradients put off once nothing else is left to fill gaps.
    for (int i = 0; i < inner; ++i) backward(1, false), forward(1), backward(0, false);
    bool split = false;
    for (int i = 0; i < depth + 1; ++i) {
      split |= i == (depth + 1) / 2 && depth % 2 == 1;
      backward(1, split);
      split |= i == (depth + 1) / 2 && depth % 2 == 0;
      backward(0, split);
    }
    for (int i = 0; i < inner; ++i) weight(), backward(0, true);
    while (next_weight < pending.size()) weight();
  }
  return table;
}

std::vector<int> VPlacement(int stages) {
  std::vector<int> out(2 * stages);
  for (int s = 0; s < stages; ++s) out[s] = out[2 * stages - 1 - s] = s;
  return out;
}

}  // namespace moe::passes
