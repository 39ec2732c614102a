// Against the emulated NCCL on every machine, and against the real one where there are GPUs: then groups have
// at most as many ranks as there are GPUs, and what only the emulation can do to NCCL is left out.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/comm/device_worlds.h"
#include "moe/comm/in_process/in_process.h"
#include "moe/comm/nccl/nccl_world.h"
#include "moe/comm/store/store_server.h"
#include "moe/comm/store/tcp_store.h"
#include "moe/device/device.h"
#include "moe/testing/conformance.h"
#include "moe/testing/process_worlds.h"
#include "moe/testing/staged_world.h"

#ifdef MOE_EMULATED
#include "slow_streams.h"
#endif

namespace moe::comm {
namespace {

using testing::CommunicatorConformance;

constexpr char kToken[] = "of the processes of this test";

int Devices() {
#ifdef MOE_EMULATED
  static const bool set = [] {
    if (std::getenv("CUDA_VISIBLE_DEVICES") == nullptr) emulated::SetDevices(8, size_t{1} << 30);
    return true;
  }();
  (void)set;
#endif
  return device::CountDevices(device::DeviceKind::kCuda);
}

// Ranks in threads of this process, each with a device of its own.
class Worlds : public testing::WorldSet {
 public:
  static absl::StatusOr<std::unique_ptr<Worlds>> Make(int n, NcclOptions options) {
    options.connect_timeout = std::max(options.connect_timeout, absl::Seconds(30));
    auto set = std::make_unique<Worlds>();
    set->host_ = std::make_unique<InProcessWorld>(n);
    for (int r = 0; r < n; ++r) {
      ASSIGN_OR_RETURN(auto world, NcclWorld::Connect(r, n, &set->store_, set->host_->rank(r), options));
      set->worlds_.push_back(std::move(world));
    }
    return set;
  }
  World* rank(int rank) override { return worlds_[rank].get(); }

 private:
  MemoryStore store_;
  std::unique_ptr<InProcessWorld> host_;
  std::vector<std::unique_ptr<NcclWorld>> worlds_;
};

absl::StatusOr<std::vector<std::shared_ptr<device::Device>>> Open(int n) {
  std::vector<std::shared_ptr<device::Device>> devices;
  for (int d = 0; d < n; ++d) {
    ASSIGN_OR_RETURN(std::unique_ptr<device::Device> device,
                     device::OpenDevice(device::DeviceKind::kCuda, d));
    devices.push_back(std::move(device));
  }
  return devices;
}

std::string Unavailable() {
  if (Devices() == 0) return "there is no CUDA device";
  return std::string(LoadNccl().status().message());
}

testing::CommBackend Backend(std::string name, bool canonical_order) {
  testing::CommBackend backend;
  backend.name = std::move(name);
  backend.unavailable = Unavailable();
  backend.max_ranks = std::min(8, Devices());
  backend.native_order = !canonical_order;
  backend.detects_mismatch = false;  // before the timeout
  backend.make = [=](int n, absl::Duration timeout) -> absl::StatusOr<std::unique_ptr<testing::WorldSet>> {
    ASSIGN_OR_RETURN(std::unique_ptr<Worlds> worlds,
                     Worlds::Make(n, {.timeout = timeout, .canonical_order = canonical_order}));
    ASSIGN_OR_RETURN(std::vector<std::shared_ptr<device::Device>> devices, Open(n));
    return testing::StageOnDevices(std::move(worlds), std::move(devices));
  };
  return backend;
}

// One world, of the rank of this process.
class OwnWorld : public testing::WorldSet {
 public:
  explicit OwnWorld(std::unique_ptr<World> world) : world_(std::move(world)) {}
  World* rank(int) override { return world_.get(); }

 private:
  const std::unique_ptr<World> world_;
};

// A rank of the sets that StartProcesses makes. Not a test of its own.
TEST(Worker, Serves) {
  const std::optional<testing::WorkerRank> me = testing::ThisWorker();
  if (!me.has_value()) GTEST_SKIP() << "this process is not a worker";
  ASSERT_GT(Devices(), 0);
  const std::vector<std::string> task = absl::StrSplit(me->task, ' ');  // timeout in ms, port of the store
  int64_t milliseconds = 0;
  int port = 0;
  ASSERT_TRUE(task.size() == 2 && absl::SimpleAtoi(task[0], &milliseconds) &&
              absl::SimpleAtoi(task[1], &port));
  ASSERT_OK_AND_ASSIGN(const auto store,
                       TcpStore::Connect({SocketAddress{.port = port}}, kToken, absl::Seconds(20)));
  ASSERT_OK_AND_ASSIGN(auto world, NcclWorld::Connect(me->rank, me->num_ranks, store.get(), nullptr,
                                                      {.timeout = absl::Milliseconds(milliseconds)}));
  ASSERT_OK_AND_ASSIGN(std::shared_ptr<device::Device> device,
                       device::OpenDevice(device::DeviceKind::kCuda, me->rank % Devices()));
  const auto set = testing::StageOnDevices(std::make_unique<OwnWorld>(std::move(world)), {std::move(device)});
  ASSERT_OK(testing::ServeRank(*me, set->rank(0)));
}

// With the store where the processes meet.
class ProcessSet : public testing::WorldSet {
 public:
  ProcessSet(std::unique_ptr<StoreServer> server, std::unique_ptr<testing::WorldSet> ranks)
      : server_(std::move(server)), ranks_(std::move(ranks)) {}
  World* rank(int rank) override { return ranks_->rank(rank); }

 private:
  const std::unique_ptr<StoreServer> server_;
  const std::unique_ptr<testing::WorldSet> ranks_;
};

absl::StatusOr<std::unique_ptr<testing::WorldSet>> StartProcesses(
    int n, absl::Duration timeout, const std::vector<std::string>& variables = {}) {
  ASSIGN_OR_RETURN(auto server, StoreServer::Start({.token = kToken}));
  const std::string task = absl::StrCat(absl::ToInt64Milliseconds(timeout), " ", server->port());
  ASSIGN_OR_RETURN(auto ranks, testing::StartRanks(n, task, variables));
  return std::make_unique<ProcessSet>(std::move(server), std::move(ranks));
}

testing::CommBackend Processes() {
  testing::CommBackend backend = Backend("Processes", false);
  backend.max_ranks = std::min(3, Devices());
  backend.make = [](int n, absl::Duration timeout) { return StartProcesses(n, timeout); };
  return backend;
}

INSTANTIATE_TEST_SUITE_P(Nccl, CommunicatorConformance,
                         ::testing::Values(Backend("NativeOrder", false), Backend("CanonicalOrder", true),
                                           Processes()),
                         testing::CommBackendName);

class Nccl : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = Unavailable(); !why.empty()) GTEST_SKIP() << why;
  }
  // Worlds whose callers have the host's memory, or null where there are too few GPUs.
  std::unique_ptr<testing::WorldSet> Make(int n, const NcclOptions& options) {
    if (Devices() < n) return nullptr;
    auto worlds = Worlds::Make(n, options);
    auto devices = Open(n);
    EXPECT_OK(worlds.status());
    EXPECT_OK(devices.status());
    return testing::StageOnDevices(*std::move(worlds), *std::move(devices));
  }
};

TEST_F(Nccl, SumsOfNarrowFloatsAreRoundedOnce) {
  const int n = std::min(5, Devices());
  const std::unique_ptr<testing::WorldSet> worlds = Make(n, {});
  std::vector<uint16_t> out(n);
  for (const absl::Status& s : testing::RunRanks(n, [&](int r) -> absl::Status {
         std::vector<int64_t> all(n);
         for (int i = 0; i < n; ++i) all[i] = i;
         ASSIGN_OR_RETURN(Communicator * c, worlds->rank(r)->Group(all, ""));
         // 256 + 1 + 1 + ...: in bf16 each 1 alone is lost, two together are not.
         const uint16_t x = r == 0 ? 0x4380 : 0x3f80;
         return c->AllReduce(&x, &out[r], 1, DType::kBF16, Reduction::kSum, "x");
       })) {
    EXPECT_OK(s);
  }
  const uint16_t want = n < 3 ? 0x4380 : n == 3 ? 0x4381 : 0x4382;
  for (const uint16_t x : out) EXPECT_EQ(x, want);
}

TEST_F(Nccl, GroupsWithoutAStreamAreTheHosts) {
  ASSERT_OK_AND_ASSIGN(auto worlds, Worlds::Make(1, {}));
  ASSERT_OK_AND_ASSIGN(Communicator * c, worlds->rank(0)->Group({0}, "host"));
  float x = 3;
  EXPECT_OK(c->AllReduce(&x, &x, 1, DType::kF32, Reduction::kSum, "x"));
  MemoryStore store;
  ASSERT_OK_AND_ASSIGN(auto alone, NcclWorld::Connect(0, 1, &store, nullptr, {}));
  ExpectError(alone->Group({0}, "host"), absl::StatusCode::kUnimplemented, "memory of GPUs");
}

TEST_F(Nccl, ATimeoutTellsWhoIsInAnotherCall) {
  const std::unique_ptr<testing::WorldSet> worlds = Make(2, {.timeout = absl::Milliseconds(300)});
  if (worlds == nullptr) GTEST_SKIP() << "needs two GPUs";
  for (const absl::Status& s : testing::RunRanks(2, [&](int r) -> absl::Status {
         ASSIGN_OR_RETURN(Communicator * c, worlds->rank(r)->Group({0, 1}, ""));
         std::vector<float> x(8);
         return c->AllReduce(x.data(), x.data(), r == 0 ? 4 : 5, DType::kF32, Reduction::kSum, "mlp");
       })) {
    ExpectError(s, absl::StatusCode::kFailedPrecondition, "count 4", "count 5", "do not match");
  }
}

TEST_F(Nccl, AMessageNobodyReceivesTimesOut) {
  const std::unique_ptr<testing::WorldSet> worlds = Make(2, {.timeout = absl::Milliseconds(200)});
  if (worlds == nullptr) GTEST_SKIP() << "needs two GPUs";
  for (const absl::Status& s : testing::RunRanks(2, [&](int r) -> absl::Status {
         ASSIGN_OR_RETURN(Communicator * c, worlds->rank(r)->Group({0, 1}, ""));
         RETURN_IF_ERROR(c->Barrier("connected"));
         int x = 0;
         if (r == 1) return absl::OkStatus();
         ExpectError(c->Send(&x, sizeof(x), 1, 9, "act.0"), absl::StatusCode::kDeadlineExceeded, "act.0",
                     "tag 9", "rank 1 never came");
         ExpectError(c->Barrier("x"), absl::StatusCode::kDeadlineExceeded, "act.0");
         return absl::OkStatus();
       })) {
    EXPECT_OK(s);
  }
}

TEST_F(Nccl, DeviceWorldsUseItBetweenGpus) {
  const int n = std::min(3, Devices());
  DeviceWorldsOptions options;
  options.kind = device::DeviceKind::kCuda;
  options.num_ranks = n;
  ASSERT_OK_AND_ASSIGN(const auto worlds, DeviceWorlds::Open(options));
  if (n > 1) {
    EXPECT_THAT(worlds->Describe(), ::testing::HasSubstr("a GPU each, by NCCL 2."));
  }
  std::vector<std::unique_ptr<device::Stream>> streams(n);
  for (const absl::Status& s : testing::RunRanks(n, [&](int r) -> absl::Status {
         ASSIGN_OR_RETURN(streams[r], worlds->device(r)->NewStream("comm"));
         ASSIGN_OR_RETURN(auto memory, worlds->device(r)->Allocate(8));
         std::vector<int64_t> all(n);
         for (int i = 0; i < n; ++i) all[i] = i;
         ASSIGN_OR_RETURN(Communicator * c, worlds->world(r)->Group(all, "comm", streams[r].get()));
         int64_t x = r + 1;
         RETURN_IF_ERROR(streams[r]->Copy(memory->data(), &x, 8));
         RETURN_IF_ERROR(c->AllReduce(memory->data(), memory->data(), 1, DType::kS64, Reduction::kSum, "x"));
         RETURN_IF_ERROR(streams[r]->Copy(&x, memory->data(), 8));
         RETURN_IF_ERROR(streams[r]->Synchronize());
         EXPECT_EQ(x, n * (n + 1) / 2);
         return worlds->world(r)->Failure();
       })) {
    EXPECT_OK(s);
  }
}

TEST_F(Nccl, BadGroupsAreRefused) {
  ASSERT_OK_AND_ASSIGN(auto worlds, Worlds::Make(2, {}));
  ASSERT_OK_AND_ASSIGN(auto devices, Open(1));
  ASSERT_OK_AND_ASSIGN(auto stream, devices[0]->NewStream("comm"));
  ExpectError(worlds->rank(0)->Group({1}, "", stream.get()), absl::StatusCode::kInvalidArgument, "rank 0");
  ExpectError(worlds->rank(0)->Group({0, 2}, "", stream.get()), absl::StatusCode::kInvalidArgument,
              "below 2");
}

#ifdef MOE_EMULATED

TEST_F(Nccl, TwoRanksOnOneDeviceAreRefusedByName) {
  ASSERT_OK_AND_ASSIGN(auto worlds, Worlds::Make(2, {}));
  ASSERT_OK_AND_ASSIGN(auto devices, Open(1));
  // One thread may form the groups of several ranks.
  std::vector<std::unique_ptr<device::Stream>> streams;
  std::vector<Communicator*> members;
  for (int r = 0; r < 2; ++r) {
    ASSERT_OK_AND_ASSIGN(auto stream, devices[0]->NewStream("comm"));
    streams.push_back(std::move(stream));
    ASSERT_OK_AND_ASSIGN(Communicator * c, worlds->rank(r)->Group({0, 1}, "", streams[r].get()));
    members.push_back(c);
  }
  for (Communicator* c : members) {
    ExpectError(c->Barrier("x"), absl::StatusCode::kInvalidArgument, "Duplicate GPU", "group [0, 1]");
  }
}

TEST_F(Nccl, AnAsynchronousErrorComesOutOfTheCallAndOfFailure) {
  const std::unique_ptr<testing::WorldSet> worlds = Make(2, {.timeout = absl::Seconds(20)});
  const absl::Time start = absl::Now();
  for (const absl::Status& s : testing::RunRanks(2, [&](int r) -> absl::Status {
         ASSIGN_OR_RETURN(Communicator * c, worlds->rank(r)->Group({0, 1}, ""));
         RETURN_IF_ERROR(c->Barrier("first"));
         if (r == 0) emulated::FailNccl(1, ncclRemoteError);
         RETURN_IF_ERROR(worlds->rank(r)->Failure());
         absl::SleepFor(absl::Milliseconds(20));
         float x = 1;
         const absl::Status s = c->AllReduce(&x, &x, 1, DType::kF32, Reduction::kSum, "mlp");
         if (r == 1) {
           ExpectError(s, absl::StatusCode::kUnavailable, "remote process exited", "rank 1",
                       "that a test asked");
           ExpectError(worlds->rank(r)->Failure(), absl::StatusCode::kUnavailable, "remote process");
         }
         worlds->rank(r)->Abort(s);
         if (r == 0) {  // NCCL leaves it hanging; the other's Abort does not
           ExpectError(s, absl::StatusCode::kAborted, "rank 1 ended the run", "remote process exited");
         }
         return absl::OkStatus();
       })) {
    EXPECT_OK(s);
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(10)) << "waited for the timeout";
}

// A process for each; one of them sees its device as the first.
TEST_F(Nccl, ProcessesOnOneDeviceAreRefusedUnlessTheyCountAsHosts) {
  for (const bool hosts : {false, true}) {
    std::vector<std::string> variables = {"CUDA_VISIBLE_DEVICES=1"};
    if (hosts) variables.push_back("NCCL_HOSTID=host%r");
    ASSERT_OK_AND_ASSIGN(const auto worlds, StartProcesses(2, absl::Seconds(20), variables));
    for (const absl::Status& s : testing::RunRanks(2, [&](int r) -> absl::Status {
           ASSIGN_OR_RETURN(Communicator * c, worlds->rank(r)->Group({0, 1}, ""));
           return c->Barrier("x");
         })) {
      if (hosts) {
        EXPECT_OK(s);
      } else {
        ExpectError(s, absl::StatusCode::kInvalidArgument, "Duplicate GPU", "group [0, 1]");
      }
    }
  }
}

// What the rest of the runtime does with a stream that records.
TEST_F(Nccl, CollectivesAreRecordedInGraphs) {
  ASSERT_OK_AND_ASSIGN(auto worlds, Worlds::Make(3, {}));
  ASSERT_OK_AND_ASSIGN(auto devices, Open(3));
  for (const absl::Status& s : testing::RunRanks(3, [&](int r) -> absl::Status {
         ASSIGN_OR_RETURN(auto stream, devices[r]->NewStream("comm"));
         ASSIGN_OR_RETURN(Communicator * c, worlds->rank(r)->Group({0, 1, 2}, "", stream.get()));
         ASSIGN_OR_RETURN(auto memory, devices[r]->Allocate(64));
         float* const x = reinterpret_cast<float*>(memory->data());
         RETURN_IF_ERROR(c->Barrier("connected"));
         RETURN_IF_ERROR(stream->BeginGraph());
         RETURN_IF_ERROR(c->AllReduce(x, x, 4, DType::kF32, Reduction::kSum, "x"));
         RETURN_IF_ERROR(c->Broadcast(x, 1, DType::kF32, 2, "x"));
         ASSIGN_OR_RETURN(auto graph, stream->EndGraph());
         for (int step = 0; step < 3; ++step) {
           const float mine[4] = {1.0f * step, 2, 3, 4.0f * r};
           float out[4];
           RETURN_IF_ERROR(stream->Copy(x, mine, sizeof(mine)));
           RETURN_IF_ERROR(stream->Launch(graph.get()));
           RETURN_IF_ERROR(stream->Copy(out, x, sizeof(out)));
           RETURN_IF_ERROR(stream->Synchronize());
           EXPECT_THAT(out, ::testing::ElementsAre(3 * step, 6, 9, 12));
         }
         return worlds->rank(r)->Failure();
       })) {
    EXPECT_OK(s);
  }
}

// The calls have returned, and the host may never come back from waiting for the stream: what watches the
// work ends the run on all ranks.
TEST_F(Nccl, WorkThatIsNotDoneInTimeEndsTheRun) {
  ASSERT_OK_AND_ASSIGN(auto worlds, Worlds::Make(2, {.timeout = absl::Milliseconds(200)}));
  ASSERT_OK_AND_ASSIGN(auto devices, Open(2));
  emulated::SetSlowness(std::chrono::seconds(20));
  for (const absl::Status& s : testing::RunRanks(2, [&](int r) -> absl::Status {
         ASSIGN_OR_RETURN(auto stream, devices[r]->NewStream("comm"));
         ASSIGN_OR_RETURN(auto memory, devices[r]->Allocate(4));
         ASSIGN_OR_RETURN(Communicator * c, worlds->rank(r)->Group({0, 1}, "", stream.get()));
         EXPECT_OK(worlds->rank(r)->Ended());
         RETURN_IF_ERROR(stream->Fill(memory->data(), 0, 4));
         RETURN_IF_ERROR(
             c->AllReduce(memory->data(), memory->data(), 1, DType::kF32, Reduction::kSum, "mlp"));
         for (int i = 0; i < 500 && worlds->rank(r)->Ended().ok(); ++i)
           absl::SleepFor(absl::Milliseconds(10));
         const absl::Status ended = worlds->rank(r)->Ended();
         ExpectError(ended, absl::StatusCode::kAborted, "DEADLINE_EXCEEDED", "group [0, 1] waited 200ms",
                     "in all_reduce(sum, f32, count 1) for 'mlp'");
         ExpectError(worlds->rank(r)->Failure(), absl::StatusCode::kAborted, "for 'mlp'");
         return absl::OkStatus();
       })) {
    EXPECT_OK(s);
  }
  emulated::SetSlowness(std::chrono::seconds(0));
}

TEST(NcclApi, AnOldLibraryIsNamed) {
  ExpectError(CheckNcclVersion(2708, "libnccl.so.2"), absl::StatusCode::kFailedPrecondition,
              "libnccl.so.2 is NCCL 2.7.8", "2.18.0 or newer");
  EXPECT_OK(CheckNcclVersion(22705, "libnccl.so.2"));
  EXPECT_EQ(NcclVersionName(22809), "2.28.9");
}

#endif

TEST(NcclApi, AMissingLibraryIsNamed) {
  static constexpr const char* kNone[] = {"libnccl-of-nobody.so.2"};
  ExpectError(LoadNcclFrom(kNone).status(), absl::StatusCode::kUnavailable, "libnccl-of-nobody.so.2",
              "LD_LIBRARY_PATH");
  static constexpr const char* kOther[] = {"libnccl-of-nobody.so.2", "libm.so.6"};
  ExpectError(LoadNcclFrom(kOther).status(), absl::StatusCode::kFailedPrecondition, "libm.so.6 lacks",
              "ncclGetVersion", "ncclAllReduce");
}

}  // namespace
}  // namespace moe::comm
