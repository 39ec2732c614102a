#include "moe/comm/job/job.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/comm/job/token.h"

namespace moe::comm {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<std::optional<ProcessPlace>> Find(const std::map<std::string, std::string>& variables) {
  return FindProcess([&](const char* name) -> const char* {
    const auto it = variables.find(name);
    return it == variables.end() ? nullptr : it->second.c_str();
  });
}

TEST(FindProcess, Torchrun) {
  ASSERT_OK_AND_ASSIGN(const auto p, Find({{"RANK", "5"},
                                           {"WORLD_SIZE", "8"},
                                           {"LOCAL_RANK", "1"},
                                           {"LOCAL_WORLD_SIZE", "4"},
                                           {"MASTER_ADDR", "10.0.0.1"},
                                           {"MASTER_PORT", "1234"},
                                           {"TORCHELASTIC_RUN_ID", "run7"},
                                           {"SLURM_PROCID", "0"},
                                           {"SLURM_NTASKS", "2"}}));
  ASSERT_TRUE(p.has_value());
  EXPECT_EQ(p->found_in, "torchrun");
  EXPECT_EQ(p->rank, 5);
  EXPECT_EQ(p->count, 8);
  EXPECT_EQ(p->local_rank, 1);
  EXPECT_EQ(p->local_count, 4);
  EXPECT_EQ(p->master_address, "10.0.0.1");
  EXPECT_EQ(p->master_port, 1234);
  EXPECT_EQ(p->job, "run7");
  EXPECT_FALSE(p->spawned);
}

TEST(FindProcess, Slurm) {
  ASSERT_OK_AND_ASSIGN(const auto p, Find({{"SLURM_PROCID", "3"},
                                           {"SLURM_NTASKS", "4"},
                                           {"SLURM_LOCALID", "1"},
                                           {"SLURM_TASKS_PER_NODE", "2(x2)"},
                                           {"SLURM_STEP_ID", "0"},
                                           {"SLURM_JOB_ID", "99"},
                                           {"SLURM_JOB_NODELIST", "gpu[04-07,9]"}}));
  ASSERT_TRUE(p.has_value());
  EXPECT_EQ(p->found_in, "Slurm");
  EXPECT_EQ(p->local_count, 2);
  EXPECT_EQ(p->rank, 3);
  EXPECT_EQ(p->master_address, "gpu04");
  EXPECT_EQ(p->job, "99");
}

TEST(FindProcess, OpenMpi) {
  ASSERT_OK_AND_ASSIGN(const auto p, Find({{"OMPI_COMM_WORLD_RANK", "1"},
                                           {"OMPI_COMM_WORLD_SIZE", "2"},
                                           {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                                           {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}}));
  ASSERT_TRUE(p.has_value());
  EXPECT_EQ(p->found_in, "Open MPI");
  EXPECT_EQ(p->master_address, "127.0.0.1");
  ASSERT_OK_AND_ASSIGN(const auto far, Find({{"OMPI_COMM_WORLD_RANK", "1"},
                                             {"OMPI_COMM_WORLD_SIZE", "4"},
                                             {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}));
  EXPECT_EQ(far->master_address, "");
}

TEST(FindProcess, AloneOrSenseless) {
  for (const std::map<std::string, std::string>& variables :
       {std::map<std::string, std::string>{}, {{"RANK", "0"}, {"WORLD_SIZE", "1"}}, {{"RANK", "3"}}}) {
    ASSERT_OK_AND_ASSIGN(const auto p, Find(variables));
    EXPECT_FALSE(p.has_value());
  }
  ExpectError(Find({{"RANK", "8"}, {"WORLD_SIZE", "8"}}), absl::StatusCode::kInvalidArgument, "RANK='8'",
              "0 to 7");
  ExpectError(Find({{"RANK", "x"}, {"WORLD_SIZE", "-1"}, {"MASTER_PORT", "70000"}}),
              absl::StatusCode::kInvalidArgument, "RANK='x'", "WORLD_SIZE='-1'", "MASTER_PORT='70000'");
}

// Slurm describes the job to its script as well, which is one process.
TEST(FindProcess, AScriptOfSlurmIsNotOneOfItsTasks) {
  std::map<std::string, std::string> variables = {
      {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}, {"SLURM_LOCALID", "0"}, {"SLURM_JOB_NODELIST", "a,b"}};
  const auto check = [&] {
    return CheckStartedBySrun([&](const char* name) -> const char* {
      const auto it = variables.find(name);
      return it == variables.end() ? nullptr : it->second.c_str();
    });
  };
  ASSERT_OK_AND_ASSIGN(const auto script, Find(variables));
  EXPECT_FALSE(script.has_value());
  ExpectError(check(), absl::StatusCode::kFailedPrecondition, "4 tasks (SLURM_NTASKS)", "srun", "--spawn=4",
              "SLURM_NTASKS=1");
  variables["SLURM_STEP_ID"] = "0";
  ASSERT_OK_AND_ASSIGN(const auto task, Find(variables));
  EXPECT_TRUE(task.has_value());
  EXPECT_OK(check());
  variables = {{"SLURM_NTASKS", "1"}};
  EXPECT_OK(check());
  variables = {};
  EXPECT_OK(check());
}

TEST(FirstHost, Lists) {
  EXPECT_EQ(FirstHost("a,b"), "a");
  EXPECT_EQ(FirstHost("node[04-07,9]"), "node04");
  EXPECT_EQ(FirstHost("n[3,5],m"), "n3");
  EXPECT_EQ(FirstHost("alone"), "alone");
  EXPECT_EQ(FirstHost(""), "");
}

int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(a);
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&a), size), 0);
  getsockname(fd, reinterpret_cast<sockaddr*>(&a), &size);
  close(fd);
  return ntohs(a.sin_port);
}

const JobToken kToken = {"a token of this test", "SWITCHYARD_JOB_TOKEN"};

std::vector<absl::Status> RunProcesses(int n, const JobOptions& options,
                                       const std::function<absl::Status(Job&)>& body,
                                       const std::string& master = "localhost") {
  ProcessPlace place;
  place.count = n;
  place.master_address = master;
  place.master_port = FreePort();
  std::vector<absl::Status> statuses(n);
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r) {
    threads.emplace_back([&, r] {
      ProcessPlace mine = place;
      mine.rank = r;
      statuses[r] = [&]() -> absl::Status {
        JobOptions with_token = options;
        with_token.token = kToken;
        ASSIGN_OR_RETURN(const std::unique_ptr<Job> job, Job::Join(mine, with_token));
        return body(*job);
      }();
    });
  }
  for (std::thread& t : threads) t.join();
  return statuses;
}

TEST(Job, AllAgreeAndNobodyLeavesBeforeAllAreDone) {
  for (const std::string master : {"127.0.0.1", "localhost", "::1"}) {
    if (master == "::1" && !IsFolder("/proc/sys/net/ipv6")) continue;  // this system has no IPv6
    std::atomic<int> done = 0;
    for (const absl::Status& s : RunProcesses(
             4, {},
             [&](Job& job) -> absl::Status {
               ASSIGN_OR_RETURN(const std::string dir,
                                job.Agree("run_dir", absl::StrCat("runs/", job.rank())));
               EXPECT_EQ(dir, "runs/0");
               ASSIGN_OR_RETURN(const std::vector<std::string> all,
                                job.Gather("ranks", absl::StrCat(job.rank())));
               EXPECT_EQ(all, job.rank() == 0 ? std::vector<std::string>({"0", "1", "2", "3"})
                                              : std::vector<std::string>());
               if (master != "localhost") {
                 EXPECT_EQ(job.address(), master);
               }
               absl::SleepFor(absl::Milliseconds(30 * job.rank()));
               ++done;
               RETURN_IF_ERROR(job.Finish());
               EXPECT_EQ(done, 4);
               return absl::OkStatus();
             },
             master)) {
      EXPECT_OK(s);
    }
  }
}

TEST(Job, WhoGivesUpIsNotWaitedFor) {
  const std::vector<absl::Status> statuses = RunProcesses(3, {}, [&](Job& job) -> absl::Status {
    if (job.rank() == 0) {
      job.GiveUp(absl::AlreadyExistsError("run directory taken"));
      absl::SleepFor(absl::Seconds(2));  // its server is still there
      return absl::OkStatus();
    }
    return job.Agree("run_dir", "").status();
  });
  for (int r : {1, 2}) ExpectError(statuses[r], absl::StatusCode::kAborted, "rank 0", "run directory taken");
}

TEST(Job, RankZeroSaysWhatAllWouldSay) {
  std::atomic<int> speakers = 0;
  for (const absl::Status& s : RunProcesses(4, {}, [&](Job& job) -> absl::Status {
         const std::string why = "NCCL was not found";
         const bool said =
             job.RankZeroSays(job.rank() == 0   ? absl::StrCat("rank 2 ended the run: UNAVAILABLE: ", why)
                              : job.rank() == 3 ? "no memory is left"
                                                : why);
         EXPECT_EQ(said, job.rank() == 1 || job.rank() == 2) << job.rank();
         speakers += !said;
         return absl::OkStatus();
       })) {
    EXPECT_OK(s);
  }
  EXPECT_EQ(speakers, 2);
}

TEST(Job, ARankThatNeverEndsIsNamed) {
  const std::vector<absl::Status> statuses =
      RunProcesses(2, {.timeout = absl::Seconds(1)}, [&](Job& job) -> absl::Status {
        if (job.rank() == 1) return absl::OkStatus();
        return job.Finish();
      });
  ExpectError(statuses[0], absl::StatusCode::kDeadlineExceeded, "rank 1");
}

// The place of one of two processes, which meet at this port.
ProcessPlace OneOfTwo(int64_t rank, int port) {
  ProcessPlace place;
  place.rank = rank;
  place.count = 2;
  place.master_address = "127.0.0.1";
  place.master_port = port;
  return place;
}

TEST(Job, WhoDoesNotComeInTimeIsNamed) {
  const int port = FreePort();
  ProcessPlace place = OneOfTwo(0, port);
  place.count = 4;
  std::vector<absl::Status> statuses(2);
  std::vector<std::thread> threads;
  for (const int64_t rank : {0, 2}) {
    threads.emplace_back([&, rank] {
      ProcessPlace mine = place;
      mine.rank = rank;
      statuses[rank / 2] = Job::Join(mine, {.token = kToken, .connect_timeout = absl::Seconds(1)}).status();
    });
  }
  for (std::thread& t : threads) t.join();
  for (const absl::Status& s : statuses) {
    ExpectError(s, absl::StatusCode::kDeadlineExceeded, "rank 0 waited 1s for 4 processes",
                "127.0.0.1:", "missing: 1, 3");
  }
  // Too late: nobody is there any more.
  place.rank = 1;
  ExpectError(Job::Join(place, {.token = kToken, .connect_timeout = absl::Milliseconds(300)}).status(),
              absl::StatusCode::kUnavailable, "nobody answers at 127.0.0.1:", "run by rank 0");
}

TEST(Job, ALateRankIsWaitedFor) {
  const int port = FreePort();
  absl::StatusOr<std::unique_ptr<Job>> late;
  std::thread other([&] {
    absl::SleepFor(absl::Milliseconds(500));
    late = Job::Join(OneOfTwo(0, port), {.token = kToken});
  });
  EXPECT_OK(Job::Join(OneOfTwo(1, port), {.token = kToken}));
  other.join();
  EXPECT_OK(late);
}

TEST(Job, AnotherTokenOrJobIsToldWhatToDo) {
  const int port = FreePort();
  absl::Status first;
  std::thread rank_0([&] {
    first = Job::Join(OneOfTwo(0, port), {.token = kToken, .connect_timeout = absl::Seconds(2)}).status();
  });
  const JobToken other = {"the token of another host", "the file /home/me/.config/switchyard/job_token"};
  ExpectError(Job::Join(OneOfTwo(1, port), {.token = other}).status(), absl::StatusCode::kPermissionDenied,
              "token of the file /home/me/.config/switchyard/job_token", "set SWITCHYARD_JOB_TOKEN");
  ProcessPlace other_job = OneOfTwo(1, port);
  other_job.job = "98";
  ExpectError(Job::Join(other_job, {.token = kToken}).status(), absl::StatusCode::kPermissionDenied,
              "in the job 98");
  rank_0.join();
  ExpectError(first, absl::StatusCode::kDeadlineExceeded, "missing: 1", "2 connections were refused");
}

TEST(Job, TwoProcessesOfOneRank) {
  ProcessPlace place = OneOfTwo(0, FreePort());
  place.count = 3;
  std::atomic<int> ended = 0;
  std::vector<absl::StatusOr<std::unique_ptr<Job>>> jobs(3);
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      ProcessPlace mine = place;
      mine.rank = i == 0 ? 0 : 1;
      jobs[i] = Job::Join(mine, {.token = kToken});
      ++ended;
    });
  }
  while (ended == 0) absl::SleepFor(absl::Milliseconds(5));
  place.rank = 2;
  EXPECT_OK(Job::Join(place, {.token = kToken}).status());
  for (std::thread& t : threads) t.join();
  EXPECT_OK(jobs[0]);
  EXPECT_NE(jobs[1].ok(), jobs[2].ok());
  ExpectError(jobs[1].ok() ? jobs[2] : jobs[1], absl::StatusCode::kAlreadyExists, "two processes are rank 1");
}

TEST(Job, RendezvousThatMakeNoSense) {
  ProcessPlace place;
  place.count = 2;
  place.found_in = "Slurm";
  ExpectError(Job::Join(place, {.token = kToken}).status(), absl::StatusCode::kInvalidArgument, "MASTER_ADDR",
              "MASTER_PORT");
  place.master_address = "no.such.host.invalid";
  ExpectError(Job::Join(place, {.token = kToken}).status(), absl::StatusCode::kUnavailable,
              "cannot find the host 'no.such.host.invalid'");
  place.master_address = "192.0.2.1";  // of nobody
  ExpectError(Job::Join(place, {.token = kToken}).status(), absl::StatusCode::kUnavailable,
              "cannot listen at 192.0.2.1:29500", "MASTER_PORT");
}

class TokenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = JoinPath(::testing::TempDir(), "tokens");
    ASSERT_OK(RemoveTree(folder_));
    ASSERT_OK(MakeFolders(folder_));
    variables_["HOME"] = folder_;
  }
  absl::StatusOr<JobToken> FindIt() const {
    return FindToken([this](const char* name) -> const char* {
      const auto it = variables_.find(name);
      return it == variables_.end() ? nullptr : it->second.c_str();
    });
  }
  std::string folder_;
  std::map<std::string, std::string> variables_;
};

TEST_F(TokenTest, OneOfTheUserIsMadeOnceAndKept) {
  std::vector<std::string> secrets(8);
  std::vector<std::thread> threads;
  for (std::string& secret : secrets) {
    threads.emplace_back([&] {
      ASSERT_OK_AND_ASSIGN(const JobToken token, FindIt());
      secret = token.secret;
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(secrets[0].size(), 64);
  for (const std::string& s : secrets) EXPECT_EQ(s, secrets[0]);
  ASSERT_OK_AND_ASSIGN(const JobToken again, FindIt());
  EXPECT_EQ(again.secret, secrets[0]);
  const std::string path = JoinPath(folder_, ".config/switchyard/job_token");
  EXPECT_EQ(again.from, "the file " + path);
  struct stat s;
  ASSERT_EQ(stat(path.c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 0777, 0600);
  EXPECT_EQ(ListFolder(JoinPath(folder_, ".config/switchyard"))->size(), 1);  // nothing is left beside it
  // Another home, another token.
  variables_["XDG_CONFIG_HOME"] = JoinPath(folder_, "other");
  ASSERT_OK_AND_ASSIGN(const JobToken other, FindIt());
  EXPECT_NE(other.secret, again.secret);
}

TEST_F(TokenTest, VariablesWin) {
  variables_["SWITCHYARD_JOB_TOKEN_FILE"] = JoinPath(folder_, "mine");
  ASSERT_OK_AND_ASSIGN(const JobToken file, FindIt());
  EXPECT_EQ(file.from, "the file " + JoinPath(folder_, "mine"));
  variables_["SWITCHYARD_JOB_TOKEN"] = "0123456789abcdef";
  ASSERT_OK_AND_ASSIGN(const JobToken given, FindIt());
  EXPECT_EQ(given.secret, "0123456789abcdef");
  EXPECT_EQ(given.from, "SWITCHYARD_JOB_TOKEN");
  EXPECT_FALSE(IsFolder(JoinPath(folder_, ".config")));
}

TEST_F(TokenTest, WhatCanBeGuessedOrReadIsRefused) {
  variables_["SWITCHYARD_JOB_TOKEN"] = "secret";
  ExpectError(FindIt(), absl::StatusCode::kInvalidArgument, "SWITCHYARD_JOB_TOKEN", "6 characters",
              "16 or more");
  variables_.erase("SWITCHYARD_JOB_TOKEN");
  const std::string path = JoinPath(folder_, "mine");
  variables_["SWITCHYARD_JOB_TOKEN_FILE"] = path;
  ASSERT_OK(FindIt());
  ASSERT_EQ(chmod(path.c_str(), 0644), 0);
  ExpectError(FindIt(), absl::StatusCode::kFailedPrecondition, path, "mode 0644", "chmod 600",
              "SWITCHYARD_JOB_TOKEN");
  ASSERT_EQ(chmod(path.c_str(), 0600), 0);
  ASSERT_OK(WriteFile(path, "short\n"));
  ASSERT_EQ(chmod(path.c_str(), 0600), 0);
  ExpectError(FindIt(), absl::StatusCode::kInvalidArgument, path, "5 characters");
  variables_["SWITCHYARD_JOB_TOKEN_FILE"] = folder_;
  ExpectError(FindIt(), absl::StatusCode::kFailedPrecondition, folder_, "not a file");
  variables_["SWITCHYARD_JOB_TOKEN_FILE"] = JoinPath(path, "beside");  // in a file
  ExpectError(FindIt(), absl::StatusCode::kFailedPrecondition, "SWITCHYARD_JOB_TOKEN");
}

}  // namespace
}  // namespace moe::comm
