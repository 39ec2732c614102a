#include "moe/train/run/history.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "moe/train/checkpoint/checkpoint.h"

namespace moe::train {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class HistoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    run_ = JoinPath(::testing::TempDir(), "history");
    ASSERT_OK(RemoveTree(run_));
    std::string metrics;
    for (int step = 1; step <= 9; ++step) {
      absl::StrAppend(&metrics, "{\"kind\":\"train\",\"iteration\":", step, "}\n");
      if (step % 2 == 0) ASSERT_OK(WriteFile(Path(step, "manifest.json"), ""));
    }
    ASSERT_OK(WriteFile(JoinPath(run_, "metrics.jsonl"), metrics));
  }
  std::string Path(int64_t step, const std::string& file = "") const {
    const std::string folder = JoinPath(JoinPath(run_, "checkpoint"), CheckpointName(step));
    EXPECT_OK(MakeFolders(folder));
    return JoinPath(folder, file);
  }
  std::vector<int64_t> Steps() const { return ListCheckpoints(JoinPath(run_, "checkpoint")); }
  std::string run_;
};

TEST_F(HistoryTest, LaterStepsAreKeptAside) {
  ASSERT_OK_AND_ASSIGN(const std::string said, SetLaterAside(run_, 4));
  const std::string aside = JoinPath(run_, "retired/after_step_00000004");
  EXPECT_EQ(said, absl::StrCat("steps 6 and 8 are kept in ", aside));
  EXPECT_THAT(Steps(), ElementsAre(2, 4));
  EXPECT_THAT(ListCheckpoints(aside), ElementsAre(6, 8));
  ASSERT_OK_AND_ASSIGN(const std::string metrics, ReadFile(JoinPath(aside, "metrics.jsonl")));
  EXPECT_EQ(metrics.substr(0, metrics.find('\n')), "{\"kind\":\"train\",\"iteration\":5}");
  EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 5);
  // The next line of history from there goes elsewhere, and nothing of the first is lost.
  Path(5);
  ASSERT_OK_AND_ASSIGN(const std::string again, SetLaterAside(run_, 4));
  EXPECT_EQ(again, absl::StrCat("step 5 is kept in ", aside, "-2"));
  EXPECT_THAT(ListCheckpoints(aside), ElementsAre(6, 8));
  EXPECT_THAT(Steps(), ElementsAre(2, 4));
}

TEST_F(HistoryTest, FromTheNewestStepNothingMoves) {
  ASSERT_OK_AND_ASSIGN(const std::string said, SetLaterAside(run_, 8));  // a lost step 9 is in the metrics
  EXPECT_EQ(said, "");
  EXPECT_THAT(Steps(), ElementsAre(2, 4, 6, 8));
  EXPECT_FALSE(IsFolder(JoinPath(run_, "retired")));
}

TEST_F(HistoryTest, ARunThatBeginsAnewKeepsWhatWasLogged) {
  ASSERT_OK(RemoveTree(JoinPath(run_, "checkpoint")));
  ASSERT_OK_AND_ASSIGN(const std::string said, SetLaterAside(run_, 0));
  EXPECT_THAT(said, ::testing::HasSubstr("retired/after_step_00000000"));
  EXPECT_TRUE(FileExists(JoinPath(run_, "retired/after_step_00000000/metrics.jsonl")));
  ASSERT_OK(RemoveTree(JoinPath(run_, "metrics.jsonl")));
  ASSERT_OK_AND_ASSIGN(const std::string nothing, SetLaterAside(run_, 0));
  EXPECT_EQ(nothing, "");
}

TEST_F(HistoryTest, RemainsOfKilledWritersAreRemovedAndNothingElse) {
  const std::string checkpoints = JoinPath(run_, "checkpoint");
  for (const char* name : {"step_00000005.tmp.AbC123", "step_00000008.tmp.zzzzzz"}) {
    ASSERT_OK(MakeFolders(JoinPath(checkpoints, name)));
    ASSERT_OK(WriteFile(JoinPath(JoinPath(checkpoints, name), "model.safetensors"), "half"));
  }
  for (const char* name : {"config.textproto.tmp.AbC123", "graph.svg.tmp.AbC123", "plan.pb.tmp.AbC123"}) {
    ASSERT_OK(WriteFile(JoinPath(run_, name), "half"));
  }
  // Of others.
  for (const char* name : {"notes.tmp.backup", "config.textproto.tmp", "config.textproto.tmp.1"}) {
    ASSERT_OK(WriteFile(JoinPath(run_, name), "mine"));
  }
  ASSERT_OK(MakeFolders(JoinPath(checkpoints, "best.tmp.AbC123")));
  ASSERT_OK(RemoveRemains(run_));
  ASSERT_OK_AND_ASSIGN(const std::vector<std::string> left, ListFolder(run_));
  EXPECT_THAT(left, ElementsAre("checkpoint", "config.textproto.tmp", "config.textproto.tmp.1",
                                "metrics.jsonl", "notes.tmp.backup"));
  ASSERT_OK_AND_ASSIGN(const std::vector<std::string> kept, ListFolder(checkpoints));
  EXPECT_THAT(kept, ElementsAre("best.tmp.AbC123", "step_00000002", "step_00000004", "step_00000006",
                                "step_00000008"));
  ASSERT_OK(RemoveTree(checkpoints));
  EXPECT_OK(RemoveRemains(run_));
}

}  // namespace
}  // namespace moe::train
