#include "moe/passes/schedule/schedules.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/passes/schedule/bubble.h"

namespace moe::passes {
namespace {

strategy::Strategy With(int stages, int chunks, int microbatches, const char* name) {
  strategy::Strategy s;
  s.pp = stages;
  s.virtual_chunks = chunks;
  s.microbatches = microbatches;
  EXPECT_TRUE(strategy::ParseChoice(name, &s.schedule.kind)) << name;
  return s;
}

TEST(SchedulesTest, InterleavedGoesThroughTheChunksInGroupsOfMicrobatches) {
  EXPECT_EQ(PrintScheduleTable(InterleavedTable(2, 2, 2)),
            "F0.0, F0.1, F2.0, F2.1, B2.0, B2.1, B0.0, B0.1\n"
            "F1.0, F1.1, F3.0, B3.0, F3.1, B3.1, B1.0, B1.1\n");
}

TEST(SchedulesTest, ZeroBubbleH1LetsWeightGradientsLagByTheStage) {
  EXPECT_EQ(PrintScheduleTable(ZeroBubbleH1Table(2, 3)),
            "F0.0, F0.1, I0.0, W0.0, F0.2, I0.1, W0.1, I0.2, W0.2\n"
            "F1.0, I1.0, F1.1, I1.1, W1.0, F1.2, I1.2, W1.1, W1.2\n");
}

TEST(SchedulesTest, VPlacementPutsTheFirstAndTheLastChunkTogether) {
  EXPECT_EQ(VPlacement(3), (std::vector<int>{0, 1, 2, 2, 1, 0}));
  ASSERT_OK_AND_ASSIGN(Schedule s, MakeSchedule(With(3, 2, 4, "zb-v")));
  EXPECT_EQ(s.chunk_stage, VPlacement(3));
}

TEST(SchedulesTest, DualPipeSendsHalfOfTheMicrobatchesUpThroughACopyOfTheModel) {
  ASSERT_OK_AND_ASSIGN(Schedule s, MakeSchedule(With(2, 2, 4, "dualpipe")));
  EXPECT_EQ(s.copies, 2);
  EXPECT_EQ(s.chunk_stage, (std::vector<int>{0, 1, 1, 0}));
  EXPECT_EQ(PrintScheduleTable(s.table),
            "F0.0, F3.2, F0.1, B3.2, F3.3, B0.0, B3.3, I0.1, W0.1\n"
            "F2.2, F1.0, F2.3, B1.0, F1.1, B2.2, B1.1, I2.3, W2.3\n");
  for (int m = 0; m < 4; ++m) EXPECT_EQ(s.CopyOfMicrobatch(m), m / 2);
  // A microbatch that changes copies on its way has no complete forward.
  std::swap(s.table[0][0].microbatch, s.table[0][1].microbatch);
  EXPECT_FALSE(ValidateTable(s).ok());
}

// Validity of every table, and the memory that each promises.
TEST(SchedulesTest, TablesRunAndHoldNoMoreThanPromised) {
  for (int p = 1; p <= 8; ++p) {
    for (int m = 1; m <= 20; ++m) {
      SCOPED_TRACE(absl::StrCat("pp = ", p, ", microbatches = ", m));
      const auto held = [&](int chunks, const char* name) {
        absl::StatusOr<Schedule> s = MakeSchedule(With(p, chunks, m, name));
        EXPECT_TRUE(s.ok()) << s.status();
        absl::StatusOr<BubbleReport> r = SimulateTable(*s, BubbleTimes());
        EXPECT_TRUE(r.ok()) << r.status();
        return r->in_flight;
      };
      const std::vector<int> one = held(1, "1f1b"), h1 = held(1, "zb-h1"), v = held(2, "zb-v");
      for (int s = 0; s < p; ++s) {
        EXPECT_EQ(one[s], std::min(m, p - s));
        EXPECT_LE(h1[s], std::min(m, p));
        EXPECT_LE(v[s], 2 * p);
      }
      if (m % p != 0) continue;
      for (const int chunks : {2, 3}) {
        const std::vector<int> i = held(chunks, "interleaved");
        for (int s = 0; s < p; ++s) {
          EXPECT_EQ(i[s], std::min(chunks * m, 2 * (p - 1 - s) + (chunks - 1) * p + 1));
        }
      }
    }
  }
}

TEST(SchedulesTest, IllegalCountsAreNamedWithTheNearestLegalOnes) {
  const auto expect = [](const strategy::Strategy& s, const char* message) {
    ExpectError(MakeSchedule(s), absl::StatusCode::kInvalidArgument, message);
  };
  expect(With(4, 2, 6, "interleaved"),
         "microbatches = 6 is no multiple of pp = 4; nearest legal: microbatches=4 or microbatches=8");
  expect(With(4, 2, 3, "interleaved"), "nearest legal: microbatches=4");
  expect(With(4, 1, 8, "interleaved"), "virtual_chunks=2");
  expect(With(3, 1, 5, "dualpipe"),
         "virtual_chunks=2, not 1; an even number of stages, not pp = 3; an even number of "
         "microbatches, at least 2 pp = 6, not 5");
  expect(With(4, 2, 8, "zb-h1"), "one chunk per stage, virtual_chunks = 2");
  expect(With(4, 2, 8, "1f1b"), "legal with it: gpipe, interleaved, zb-v (2), dualpipe (2), file:PATH");
  expect(With(4, 1, 8, "zb-v"), "legal is virtual_chunks=2");
}

TEST(SchedulesTest, HalvesOfABackwardAreChecked) {
  Schedule s;
  s.name = "mine";
  s.microbatches = 1;
  s.chunk_stage = {0};
  const auto check = [&](const char* csv) {
    absl::StatusOr<ScheduleTable> table = ParseScheduleTable(csv, "mine");
    EXPECT_TRUE(table.ok()) << table.status();
    s.table = *table;
    return std::string(ValidateTable(s).message());
  };
  EXPECT_EQ(check("F0.0, I0.0, W0.0"), "");
  EXPECT_EQ(check("F0.0, I0.0"), "stage 0: W0.0 is missing; each cell runs exactly once");
  EXPECT_EQ(check("F0.0, W0.0, I0.0"), "the order cannot run: stage 0 at W0.0 waits for I0.0 of stage 0");
  EXPECT_EQ(check("F0.0, B0.0, W0.0"),
            "stage 0: B0.0 is the whole backward; I0.0 and W0.0 are its halves: write one or the other");
}

TEST(Schedules, MicrobatchesInFlight) {
  const auto held = [](const char* words) {
    return MicrobatchesInFlight(*MakeSchedule(*strategy::ParseStrategy(words)));
  };
  EXPECT_EQ(held("microbatches=4"), std::vector<int>({1}));
  EXPECT_EQ(held("pp=4 microbatches=8"), std::vector<int>({4, 3, 2, 1}));
  EXPECT_EQ(held("pp=4 microbatches=8 schedule=gpipe"), std::vector<int>({8, 8, 8, 8}));
  // Until the weight gradient has run.
  EXPECT_EQ(held("pp=4 microbatches=8 schedule=zb-h1"), std::vector<int>({4, 4, 4, 4}));
}

}  // namespace
}  // namespace moe::passes
