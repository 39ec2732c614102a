#include "moe/comm/job/job.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <string>
#include <thread>
#include <vector>

#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"

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
  EXPECT_EQ(p->token, "run7");
  EXPECT_FALSE(p->spawned);
}

TEST(FindProcess, Slurm) {
  ASSERT_OK_AND_ASSIGN(const auto p, Find({{"SLURM_PROCID", "3"},
                                           {"SLURM_NTASKS", "4"},
                                           {"SLURM_LOCALID", "1"},
                                           {"SLURM_TASKS_PER_NODE", "2(x2)"},
                                           {"SLURM_JOB_ID", "99"},
                                           {"SLURM_JOB_NODELIST", "gpu[04-07,9]"}}));
  ASSERT_TRUE(p.has_value());
  EXPECT_EQ(p->found_in, "Slurm");
  EXPECT_EQ(p->local_count, 2);
  EXPECT_EQ(p->rank, 3);
  EXPECT_EQ(p->master_address, "gpu04");
  EXPECT_EQ(p->token, "99");
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

std::vector<absl::Status> RunProcesses(int n, const JobOptions& options,
                                       const std::function<absl::Status(Job&)>& body) {
  ProcessPlace place;
  place.count = n;
  place.master_address = "localhost";
  place.master_port = FreePort();
  std::vector<absl::Status> statuses(n);
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r) {
    threads.emplace_back([&, r] {
      ProcessPlace mine = place;
      mine.rank = r;
      statuses[r] = [&]() -> absl::Status {
        ASSIGN_OR_RETURN(const std::unique_ptr<Job> job, Job::Join(mine, options));
        return body(*job);
      }();
    });
  }
  for (std::thread& t : threads) t.join();
  return statuses;
}

TEST(Job, AllAgreeAndNobodyLeavesBeforeAllAreDone) {
  const std::string folder = JoinPath(::testing::TempDir(), "rendezvous");
  for (const std::string& where : {std::string(), folder}) {
    ASSERT_OK(RemoveTree(folder));
    std::atomic<int> done = 0;
    for (const absl::Status& s : RunProcesses(4, {.rendezvous = where}, [&](Job& job) -> absl::Status {
           ASSIGN_OR_RETURN(const std::string dir, job.Agree("run_dir", absl::StrCat("runs/", job.rank())));
           EXPECT_EQ(dir, "runs/0");
           EXPECT_EQ(job.address(), "127.0.0.1");
           absl::SleepFor(absl::Milliseconds(30 * job.rank()));
           ++done;
           RETURN_IF_ERROR(job.Finish());
           EXPECT_EQ(done, 4);
           return absl::OkStatus();
         })) {
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

TEST(Job, ARankThatNeverComesIsNamed) {
  const std::vector<absl::Status> statuses =
      RunProcesses(2, {.timeout = absl::Seconds(1)}, [&](Job& job) -> absl::Status {
        if (job.rank() == 1) return absl::OkStatus();
        return job.Finish();
      });
  ExpectError(statuses[0], absl::StatusCode::kDeadlineExceeded, "rank 1");
}

TEST(Job, RendezvousThatMakeNoSense) {
  ProcessPlace place;
  place.count = 2;
  place.found_in = "Slurm";
  ExpectError(Job::Join(place, {}).status(), absl::StatusCode::kInvalidArgument, "MASTER_ADDR",
              "--rendezvous");
  place.master_address = "192.0.2.1";
  ExpectError(Job::Join(place, {}).status(), absl::StatusCode::kFailedPrecondition, "SWITCHYARD_JOB_TOKEN");
  ExpectError(Job::Join(place, {.rendezvous = "tcp://host:29500"}).status(),
              absl::StatusCode::kInvalidArgument, "folder", "tcp://host:29500");
  const std::string folder = JoinPath(::testing::TempDir(), "used");
  ASSERT_OK(RemoveTree(folder));
  ASSERT_OK(Job::Join(place, {.rendezvous = folder}).status());
  ExpectError(Job::Join(place, {.rendezvous = folder}).status(), absl::StatusCode::kAlreadyExists, "rank 0",
              "fresh");
}

}  // namespace
}  // namespace moe::comm
