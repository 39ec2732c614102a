#include "moe/passes/schedule/schedule_table.h"

#include <gtest/gtest.h>

#include "moe/base/file.h"
#include "moe/base/status_matchers.h"

namespace moe::passes {
namespace {

TEST(ScheduleTable, OneForwardOneBackward) {
  EXPECT_EQ(PrintScheduleTable(OneForwardOneBackwardTable(2, 3)),
            "F0.0, F0.1, B0.0, F0.2, B0.1, B0.2\n"
            "F1.0, B1.0, F1.1, B1.1, F1.2, B1.2\n");
  for (const int stages : {1, 2, 3, 5, 8}) {
    for (const int microbatches : {1, 2, 4, 9}) {
      Schedule s;
      s.microbatches = microbatches;
      for (int c = 0; c < stages; ++c) s.chunk_stage.push_back(c);
      s.table = OneForwardOneBackwardTable(stages, microbatches);
      EXPECT_OK(ValidateTable(s));
      s.table = GPipeTable(stages, 1, microbatches);
      EXPECT_OK(ValidateTable(s));
    }
  }
}

absl::StatusOr<Schedule> FromText(const std::string& csv, int pp, int virtual_chunks, int microbatches) {
  const std::string path = JoinPath(::testing::TempDir(), "table.csv");
  EXPECT_TRUE(WriteFile(path, csv).ok());
  strategy::Strategy s;
  s.pp = pp;
  s.virtual_chunks = virtual_chunks;
  s.microbatches = microbatches;
  s.schedule = {strategy::ScheduleKind::kFile, path};
  return MakeSchedule(s);
}

TEST(ScheduleTable, AUsersTableSaysWhereChunksRun) {
  // A V: the first and the last chunk on one stage.
  ASSERT_OK_AND_ASSIGN(const Schedule s,
                       FromText("# V\nF0.0,,, F3.0, B3.0,,, B0.0\n,F1.0, F2.0,,, B2.0, B1.0,\n", 2, 2, 1));
  EXPECT_EQ(s.chunk_stage, (std::vector<int>{0, 1, 1, 0}));
}

TEST(ScheduleTable, ErrorsNameCellAndStage) {
  const absl::StatusCode bad = absl::StatusCode::kInvalidArgument;
  ExpectError(FromText("F0.0, X1\nF1.0\n", 2, 1, 1), bad, "line 1, column 2", "'X1'");
  ExpectError(FromText("F0.0, W0.0\nF1.0\n", 2, 1, 1), bad, "stage 0: I0.0 is missing");
  ExpectError(FromText("F0.0, B0.0\n", 2, 1, 1), bad, "1 rows for pp = 2");
  ExpectError(FromText("F0.0, F0.0, B0.0\nF1.0, B1.0\n", 2, 1, 1), bad, "stage 0: F0.0 appears twice");
  ExpectError(FromText("F0.0\nF1.0, B1.0\n", 2, 1, 1), bad, "stage 0: B0.0 is missing");
  ExpectError(FromText("F0.0, B0.0, B1.0\nF1.0\n", 2, 1, 1), bad, "B1.0: chunk 1 belongs to stage 1");
  ExpectError(FromText("F0.0, B0.0\nF1.0, B1.0, F1.1\n", 2, 1, 1), bad, "legal microbatches are 0 to 0");
  ExpectError(FromText("B0.0, F0.0\nF1.0, B1.0\n", 2, 1, 1), bad, "stage 0 at B0.0 waits for F0.0",
              "stage 1 at F1.0 waits for F0.0 of stage 0");
}

}  // namespace
}  // namespace moe::passes
