#include "moe/passes/schedule/bubble.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "moe/passes/schedule/schedules.h"

namespace moe::passes {
namespace {

double Bubble(int stages, int chunks, int microbatches, const std::string& name, const BubbleTimes& times) {
  strategy::Strategy s;
  s.pp = stages;
  s.virtual_chunks = chunks;
  s.microbatches = microbatches;
  EXPECT_TRUE(strategy::ParseChoice(name, &s.schedule.kind)) << name;
  absl::StatusOr<Schedule> schedule = MakeSchedule(s);
  EXPECT_TRUE(schedule.ok()) << schedule.status();
  absl::StatusOr<BubbleReport> r = SimulateTable(*schedule, times);
  EXPECT_TRUE(r.ok()) << r.status();
  return r->bubble;
}

TEST(BubbleTest, GPipeAnd1F1BAndInterleavedHaveTheShareOfTheTextbook) {
  BubbleTimes times;
  times.forward = 1;
  times.input_grad = 1.25;  // a backward of two forwards and a bit
  times.weight_grad = 1;
  for (const int p : {1, 2, 4, 8}) {
    for (const int m : {p, 2 * p, 5 * p}) {
      SCOPED_TRACE(absl::StrCat("pp = ", p, ", microbatches = ", m));
      EXPECT_NEAR(Bubble(p, 1, m, "gpipe", times), (p - 1.0) / (m + p - 1), 1e-12);
      EXPECT_NEAR(Bubble(p, 1, m, "1f1b", times), (p - 1.0) / (m + p - 1), 1e-12);
      for (const int v : {2, 3, 4}) {
        EXPECT_NEAR(Bubble(p, v, m, "interleaved", times), (p - 1.0) / (v * m + p - 1), 1e-12);
      }
    }
  }
}

TEST(BubbleTest, ZeroBubbleH1IsAThirdOf1F1BWhereAllHalvesAreEqual) {
  for (const int p : {2, 4, 8}) {
    for (const int m : {2 * p, 4 * p}) {
      EXPECT_NEAR(Bubble(p, 1, m, "zb-h1", BubbleTimes()), (p - 1.0) / (3 * m + p - 1), 1e-12);
    }
  }
}

TEST(BubbleTest, ZeroBubbleVIsBelowH1) {
  for (const int p : {2, 4, 8}) {
    for (const int m : {p, 2 * p, 4 * p, 8 * p}) {
      SCOPED_TRACE(absl::StrCat("pp = ", p, ", microbatches = ", m));
      const double h1 = (p - 1.0) / (3 * m + p - 1);
      EXPECT_LT(Bubble(p, 2, m, "zb-v", BubbleTimes()), h1);
    }
  }
}

TEST(BubbleTest, GivesThePublishedRatesToFourDecimals) {
  ASSERT_OK_AND_ASSIGN(const std::string text,
                       ReadFile("moe/passes/schedule/testdata/zero_bubble.csv", 1 << 20));
  int rows = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    if (line[0] == '#' || line[0] == 's') continue;
    const std::vector<std::string> cells = absl::StrSplit(line, ',');
    ASSERT_EQ(cells.size(), 8u) << line;
    int p = 0, m = 0;
    BubbleTimes t;
    double rate = 0;
    ASSERT_TRUE(absl::SimpleAtoi(cells[0], &p) && absl::SimpleAtoi(cells[1], &m) &&
                absl::SimpleAtod(cells[2], &t.forward) && absl::SimpleAtod(cells[3], &t.input_grad) &&
                absl::SimpleAtod(cells[4], &t.weight_grad) && absl::SimpleAtod(cells[5], &t.transfer) &&
                absl::SimpleAtod(cells[7], &rate))
        << line;
    EXPECT_NEAR(Bubble(p, 1, m, cells[6], t), rate, 0.00005) << line;
    ++rows;
  }
  EXPECT_EQ(rows, 12);
}

TEST(BubbleTest, DualPipeHasThePublishedBubbleWhereForwardAndBackwardRunTogether) {
  for (const int p : {2, 4, 6, 8, 16}) {
    for (const int m : {2 * p, 2 * p + 2, 4 * p}) {
      strategy::Strategy strategy;
      strategy.pp = p;
      strategy.virtual_chunks = 2;
      strategy.microbatches = m;
      strategy.schedule = strategy::ScheduleKind::kDualPipe;
      ASSERT_OK_AND_ASSIGN(const Schedule s, MakeSchedule(strategy));
      BubbleTimes times;  // F = I = W = 1, so B = 2
      ASSERT_OK_AND_ASSIGN(const BubbleReport apart, SimulateTable(s, times));
      times.together = true;
      ASSERT_OK_AND_ASSIGN(const BubbleReport r, SimulateTable(s, times));
      // (p/2 - 1)(F&B + B - 3W) with F&B = F + B
      EXPECT_DOUBLE_EQ(r.makespan - r.work, (p / 2 - 1) * (3.0 + 2 - 3)) << p << " " << m;
      EXPECT_DOUBLE_EQ(apart.makespan - apart.work, p / 2 - 1) << p << " " << m;
      for (const int held : r.in_flight) EXPECT_EQ(held, p + 1);
    }
  }
}

TEST(BubbleTest, RefusesATableThatCannotRun) {
  Schedule s;
  s.name = "mine";
  s.microbatches = 1;
  s.chunk_stage = {0};
  s.table = {{{'B', 0, 0}, {'F', 0, 0}}};
  EXPECT_FALSE(SimulateTable(s, BubbleTimes()).ok());
}

}  // namespace
}  // namespace moe::passes
