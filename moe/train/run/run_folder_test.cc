#include "moe/train/run/run_folder.h"

#include <sys/wait.h>
#include <unistd.h>

#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"

namespace moe::train {
namespace {

using ::testing::HasSubstr;

class RunFolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = JoinPath(::testing::TempDir(), "run_folder");
    ASSERT_OK(RemoveTree(root_));
    ASSERT_OK(MakeFolders(root_));
    dir_ = JoinPath(root_, "runs/mine");
  }
  std::string Lock() const { return JoinPath(dir_, ".lock"); }
  // As a process leaves it that is killed.
  void LeaveRecord(const std::string& host, int64_t process, int64_t started = 1) {
    ASSERT_OK(MakeFolders(dir_));
    ASSERT_OK(
        WriteFile(Lock(), absl::StrCat("{\"host\":\"", host, "\",\"process\":", process,
                                       ",\"started\":", started, ",\"since\":\"2020-01-02 03:04:05\"}\n")));
  }
  static std::string Host() {
    char name[256] = {};
    return ::gethostname(name, 255) == 0 ? name : "";
  }
  std::string root_, dir_;
};

TEST_F(RunFolderTest, ASecondClaimIsToldWhoHoldsIt) {
  {
    ASSERT_OK_AND_ASSIGN(const RunFolder first, RunFolder::Claim(dir_));
    EXPECT_EQ(first.path(), dir_);
    ExpectError(RunFolder::Claim(dir_), absl::StatusCode::kAlreadyExists, dir_,
                absl::StrCat("process ", getpid(), " on host ", Host()), "--run_dir");
    // By another way to the same folder, too.
    ExpectError(RunFolder::Claim(JoinPath(root_, "runs/../runs/mine")), absl::StatusCode::kAlreadyExists);
  }
  EXPECT_OK(RunFolder::Claim(dir_));
}

TEST_F(RunFolderTest, OfManyAtOnceOneGetsIt) {
  constexpr int kThreads = 8;
  for (int round = 0; round < 10; ++round) {
    std::vector<std::optional<RunFolder>> got(kThreads);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        absl::StatusOr<RunFolder> folder = RunFolder::Claim(dir_);
        if (folder.ok()) got[t].emplace(*std::move(folder));
      });
    }
    for (std::thread& t : threads) t.join();
    int holders = 0;
    for (const auto& g : got) holders += g.has_value();
    EXPECT_EQ(holders, 1);
  }
}

TEST_F(RunFolderTest, WhatAProcessHeldIsFreeOnceItIsKilled) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const absl::StatusOr<RunFolder> folder = RunFolder::Claim(dir_);
    if (write(ready[1], folder.ok() ? "1" : "0", 1) == 1) pause();
    _exit(1);
  }
  char claimed = '0';
  ASSERT_EQ(read(ready[0], &claimed, 1), 1);
  EXPECT_EQ(claimed, '1');
  ExpectError(RunFolder::Claim(dir_), absl::StatusCode::kAlreadyExists, absl::StrCat("process ", child, " "));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_TRUE(FileExists(Lock())) << "its record is left over";
  EXPECT_OK(RunFolder::Claim(dir_));
}

TEST_F(RunFolderTest, LeftoverRecords) {
  // A lock that reaches everybody proves that whoever wrote the record is gone, wherever it was.
  for (const std::string& host : {Host(), std::string("elsewhere")}) {
    LeaveRecord(host, 1);
    EXPECT_OK(RunFolder::Claim(dir_, LockReach::kEverybody));
  }
  LeaveRecord(Host(), 1);
  EXPECT_OK(RunFolder::Claim(dir_, LockReach::kHost));
  for (const LockReach reach : {LockReach::kHost, LockReach::kNobody}) {
    LeaveRecord("elsewhere", 4321);
    ExpectError(RunFolder::Claim(dir_, reach), absl::StatusCode::kAlreadyExists,
                "process 4321 on host elsewhere", "2020-01-02 03:04:05",
                absl::StrCat("remove ", Lock(), " and start again"));
    ASSERT_OK(RemoveTree(Lock()));
    EXPECT_OK(RunFolder::Claim(dir_, reach));
  }
  // Half a record is none.
  ASSERT_OK(MakeFolders(dir_));
  for (const char* text : {"", "{\"host\":\"elsew", "[1]", "\xff\xff"}) {
    ASSERT_OK(WriteFile(Lock(), text));
    EXPECT_OK(RunFolder::Claim(dir_, LockReach::kHost));
  }
}

TEST_F(RunFolderTest, WithoutLocksTheRecordDecides) {
  // The parent of this process lives, but was not started when the record says.
  LeaveRecord(Host(), getppid(), /*started=*/1);
  EXPECT_OK(RunFolder::Claim(dir_, LockReach::kNobody));
  const pid_t child = fork();
  if (child == 0) {
    absl::StatusOr<RunFolder> folder = RunFolder::Claim(dir_, LockReach::kNobody);
    if (folder.ok()) pause();
    _exit(1);
  }
  for (int i = 0; i < 500 && !FileExists(Lock()); ++i) usleep(10'000);
  usleep(100'000);
  ExpectError(RunFolder::Claim(dir_, LockReach::kNobody), absl::StatusCode::kAlreadyExists,
              absl::StrCat("process ", child, " "));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_OK(RunFolder::Claim(dir_, LockReach::kNobody));
}

TEST_F(RunFolderTest, ARefusedRunLeavesNothingBehind) {
  { ASSERT_OK_AND_ASSIGN(const RunFolder folder, RunFolder::Claim(dir_)); }
  EXPECT_FALSE(IsFolder(JoinPath(root_, "runs")));
  // What was there stays, and so does what a run has kept.
  ASSERT_OK(MakeFolders(JoinPath(root_, "runs")));
  { ASSERT_OK_AND_ASSIGN(const RunFolder folder, RunFolder::Claim(dir_)); }
  EXPECT_FALSE(IsFolder(dir_));
  EXPECT_TRUE(IsFolder(JoinPath(root_, "runs")));
  {
    ASSERT_OK_AND_ASSIGN(RunFolder folder, RunFolder::Claim(dir_));
    folder.Keep();
  }
  EXPECT_TRUE(IsFolder(dir_));
  EXPECT_FALSE(FileExists(Lock()));
}

TEST_F(RunFolderTest, NewFoldersAreNew) {
  ASSERT_OK_AND_ASSIGN(const RunFolder first, RunFolder::ClaimNew(dir_));
  EXPECT_EQ(first.path(), dir_);
  ASSERT_OK_AND_ASSIGN(const RunFolder second, RunFolder::ClaimNew(dir_));
  EXPECT_EQ(second.path(), dir_ + "-2");
  ASSERT_OK(WriteFile(JoinPath(root_, "file"), ""));
  EXPECT_THAT(RunFolder::ClaimNew(JoinPath(root_, "file/run")).status().message(), HasSubstr("--run_dir"));
}

}  // namespace
}  // namespace moe::train
