#include "moe/train/run/resume_point.h"

#include <unistd.h>

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "moe/train/checkpoint/checkpoint.h"

namespace moe::train {
namespace {

namespace fs = std::filesystem;

class ResumePointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = JoinPath(::testing::TempDir(), "resume_point");
    ASSERT_OK(RemoveTree(root_));
    ASSERT_OK(MakeFolders(root_));
    run_ = JoinPath(root_, "run");
    before_ = fs::current_path();
    fs::current_path(root_);
  }
  void TearDown() override { fs::current_path(before_); }

  void MakeRun(const std::string& run, double lr = 0.5) {
    ASSERT_OK(MakeFolders(run));
    RunConfig config = DefaultRunConfig();
    config.mutable_train()->set_lr(lr);
    config.mutable_train()->set_run_dir("/elsewhere");
    config.mutable_train()->set_resume("/elsewhere/checkpoint");
    config.mutable_train()->set_data_path("data.txt");
    ASSERT_OK(WriteRunConfig(run, config));
  }
  static void Save(const std::string& root, int64_t step, double lr = 0.25) {
    RunConfig config = DefaultRunConfig();
    config.mutable_train()->set_lr(lr);
    ASSERT_OK(WriteCheckpoint(JoinPath(root, CheckpointName(step)),
                              {.run_config = RunConfigToText(config), .step = step}, {}));
  }
  static double RateOf(const std::string& path) {
    const absl::StatusOr<RunConfig> config = ConfigToResume(path);
    EXPECT_OK(config);
    if (!config.ok()) return 0;
    EXPECT_EQ(config->train().run_dir(), "");
    EXPECT_EQ(config->train().resume(), "");
    return config->train().lr();
  }
  std::string root_, run_;
  fs::path before_;
};

TEST_F(ResumePointTest, ARunIsWhereItsFolderIs) {
  MakeRun("run");
  Save("run/checkpoint", 4);
  for (const char* path : {"run", "run/", "./run", "run/checkpoint", "run/checkpoint/step_00000004",
                           "run/checkpoint/step_00000004/", "run/checkpoint/step_00000009"}) {
    EXPECT_EQ(RunOf(path), "run") << path;
    EXPECT_EQ(RateOf(path), 0.5) << path;
  }
  EXPECT_EQ(RunOf(JoinPath(run_, "checkpoint")), run_);
  for (const char* path : {"", ".", "nowhere", "checkpoint", "data.txt"}) EXPECT_EQ(RunOf(path), "") << path;
  // From inside, and through links.
  fs::current_path("run/checkpoint");
  for (const char* path : {".", "..", "step_00000004", "../checkpoint"}) {
    EXPECT_TRUE(SameFolder(RunOf(path), run_)) << path;
  }
  fs::current_path(root_);
  fs::create_symlink("run/checkpoint/step_00000004", "best");
  EXPECT_TRUE(SameFolder(RunOf("best"), run_));
  // A copy is a run of its own, whatever its configuration says.
  fs::copy("run", "copy", fs::copy_options::recursive);
  EXPECT_EQ(RunOf("copy/checkpoint/step_00000004"), "copy");
}

TEST_F(ResumePointTest, APathInAConfigurationIsMeantFromItsFolder) {
  ASSERT_OK(WriteFile("data.txt", "text"));
  MakeRun("run");
  const auto data_of = [&](const std::string& path) {
    const absl::StatusOr<RunConfig> config = ConfigToResume(path);
    EXPECT_OK(config);
    return config.ok() ? config->train().data_path() : "";
  };
  EXPECT_TRUE(FileExists(data_of("run")));
  // What was read is written again, and means the same from elsewhere, however the run was named.
  for (const std::string& named : {std::string("run"), run_}) {
    ASSERT_OK_AND_ASSIGN(const RunConfig config, ConfigToResume(named));
    ASSERT_OK(WriteRunConfig(named, config));
    ASSERT_OK_AND_ASSIGN(const std::string text, ReadFile("run/config.textproto"));
    EXPECT_THAT(text, ::testing::HasSubstr("data_path: \"../data.txt\""));
  }
  ASSERT_OK(MakeFolders("other/place"));
  fs::rename("run", "other/run");
  fs::rename("data.txt", "other/data.txt");
  fs::current_path("other/place");
  EXPECT_TRUE(FileExists(data_of("../run")));
  EXPECT_TRUE(FileExists(data_of(JoinPath(root_, "other/run"))));
  // An absolute one stays.
  RunConfig config = DefaultRunConfig();
  config.mutable_train()->set_data_path("/data/text.txt");
  ASSERT_OK(WriteRunConfig("../run", config));
  EXPECT_EQ(data_of("../run"), "/data/text.txt");
}

TEST_F(ResumePointTest, ACheckpointInNoRunSaysItselfWhatItWas) {
  Save("saved", 7);
  EXPECT_EQ(RunOf("saved"), "");
  EXPECT_EQ(RateOf("saved"), 0.25);
  EXPECT_EQ(RateOf("saved/step_00000007"), 0.25);
  EXPECT_EQ(RateOf("nowhere"), DefaultRunConfig().train().lr());
}

TEST_F(ResumePointTest, TheStartIsTheNewestCheckpointOrTheBeginning) {
  ExpectError(FindStart("run"), absl::StatusCode::kNotFound, "neither a run nor a checkpoint", "run");
  ASSERT_OK(MakeFolders("run"));
  ExpectError(FindStart("run"), absl::StatusCode::kNotFound, "neither a run nor a checkpoint");
  EXPECT_FALSE(HoldsRun("run"));
  MakeRun("run");
  for (const char* path : {"run", "run/", "run/checkpoint"}) {
    ASSERT_OK_AND_ASSIGN(const std::string from, FindStart(path));
    EXPECT_EQ(from, "") << path;
  }
  Save("run/checkpoint", 4);
  Save("run/checkpoint", 8);
  EXPECT_TRUE(HoldsRun("run"));
  for (const char* path : {"run", "run/checkpoint", "run/checkpoint/step_00000008"}) {
    ASSERT_OK_AND_ASSIGN(const std::string from, FindStart(path));
    EXPECT_EQ(from, "run/checkpoint/step_00000008") << path;
  }
  ASSERT_OK_AND_ASSIGN(const std::string from, FindStart("run/checkpoint/step_00000004"));
  EXPECT_EQ(from, "run/checkpoint/step_00000004");
  ExpectError(FindStart("run/checkpoint/step_00000006"), absl::StatusCode::kNotFound, "step_00000006",
              "4, 8");
  // What has lost its manifest is not passed over.
  ASSERT_OK(RemoveTree("run/checkpoint/step_00000008/manifest.json"));
  ASSERT_OK_AND_ASSIGN(const std::string damaged, FindStart("run"));
  EXPECT_EQ(damaged, "run/checkpoint/step_00000008");
}

TEST_F(ResumePointTest, ARunThatBranchedOffBeginsWhereItBranched) {
  MakeRun("old");
  Save("old/checkpoint", 4);
  MakeRun("new");
  ASSERT_OK(NoteOrigin("new", "old/checkpoint/step_00000004"));
  ASSERT_OK_AND_ASSIGN(const std::string from, FindStart("new"));
  EXPECT_TRUE(SameFolder(from, "old/checkpoint/step_00000004")) << from;
  Save("new/checkpoint", 6);
  ASSERT_OK_AND_ASSIGN(const std::string own, FindStart("new"));
  EXPECT_EQ(own, "new/checkpoint/step_00000006");
  ASSERT_OK(RemoveTree("new/checkpoint"));
  ASSERT_OK(RemoveTree("old"));
  ExpectError(FindStart("new"), absl::StatusCode::kNotFound, "old/checkpoint/step_00000004",
              "no longer there");
  ASSERT_OK(NoteOrigin("new", ""));
  ASSERT_OK_AND_ASSIGN(const std::string beginning, FindStart("new"));
  EXPECT_EQ(beginning, "");
}

TEST_F(ResumePointTest, WhereARunGoesOn) {
  MakeRun("run");
  Save("run/checkpoint", 4);
  TrainConfig train;
  const auto start = [&](const std::string& resume, const std::string& run_dir) {
    train.set_resume(resume);
    train.set_run_dir(run_dir);
    return FindStartOf(train).value_or("refused");
  };
  EXPECT_EQ(start("", "new"), "");
  EXPECT_EQ(ContinuedRun(train), "");
  EXPECT_EQ(start("run/checkpoint", ""), "run/checkpoint/step_00000004");
  EXPECT_EQ(ContinuedRun(train), "run");
  EXPECT_EQ(start("run", run_), "run/checkpoint/step_00000004");
  EXPECT_EQ(ContinuedRun(train), "run");
  EXPECT_EQ(start("run", "new"), "run/checkpoint/step_00000004");
  EXPECT_EQ(ContinuedRun(train), "");
  EXPECT_EQ(start("new", "new"), "");
  EXPECT_EQ(start("new", ""), "refused");
  EXPECT_EQ(start("new", "other"), "refused");
  // A branch whose origin is gone does not begin at the beginning.
  MakeRun("branch");
  ASSERT_OK(NoteOrigin("branch", "gone/step_00000001"));
  EXPECT_EQ(start("branch", "branch"), "refused");
}

}  // namespace
}  // namespace moe::train
