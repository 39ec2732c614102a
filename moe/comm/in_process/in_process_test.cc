#include "moe/comm/in_process/in_process.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/comm/compute_gate.h"
#include "moe/testing/conformance.h"
#include "moe/testing/delayed_device.h"
#include "moe/testing/staged_world.h"

namespace moe::comm {
namespace {

using testing::CommunicatorConformance;

class Worlds : public testing::WorldSet {
 public:
  Worlds(int num_ranks, InProcessOptions options) : world_(num_ranks, options) {}
  World* rank(int rank) override { return world_.rank(rank); }

 private:
  InProcessWorld world_;
};

testing::CommBackend Backend(std::string name, int64_t small_bytes) {
  testing::CommBackend backend;
  backend.name = std::move(name);
  backend.make = [small_bytes](int n,
                               absl::Duration timeout) -> absl::StatusOr<std::unique_ptr<testing::WorldSet>> {
    return std::make_unique<Worlds>(n, InProcessOptions{.timeout = timeout, .small_bytes = small_bytes});
  };
  return backend;
}

// Both ways of doing the work must pass everything: everybody a share, and the last arrival all.
INSTANTIATE_TEST_SUITE_P(InProcess, CommunicatorConformance,
                         ::testing::Values(Backend("Default", InProcessOptions().small_bytes),
                                           Backend("Split", 0), Backend("LastDoesAll", int64_t{1} << 40)),
                         testing::CommBackendName);

// Over devices whose streams are late: what no event orders comes out wrong.
testing::CommBackend Delayed(std::string name, int devices) {
  testing::CommBackend backend;
  backend.name = std::move(name);
  backend.make = [devices](int n,
                           absl::Duration timeout) -> absl::StatusOr<std::unique_ptr<testing::WorldSet>> {
    std::vector<std::shared_ptr<device::Device>> all, of_rank;
    for (int d = 0; d < devices; ++d) all.push_back(testing::NewDelayedDevice(d, std::random_device()()));
    for (int r = 0; r < n; ++r) of_rank.push_back(all[r % devices]);
    return testing::StageOnDevices(std::make_unique<Worlds>(n, InProcessOptions{.timeout = timeout}),
                                   of_rank);
  };
  return backend;
}
INSTANTIATE_TEST_SUITE_P(OverDevices, CommunicatorConformance,
                         ::testing::Values(Delayed("One", 1), Delayed("Several", 3)),
                         testing::CommBackendName);

// Nobody waits for the streams between calls; only events keep one call's work behind that of the last.
TEST(InProcess, WorkOfStreamsIsOrderedByEventsAlone) {
  constexpr int kRanks = 4, kSteps = 40;
  constexpr int64_t kCount = 1000;
  for (int devices : {1, 2}) {
    std::vector<std::unique_ptr<device::Device>> all;
    for (int d = 0; d < devices; ++d) all.push_back(testing::NewDelayedDevice(d, std::random_device()()));
    InProcessWorld world(kRanks);
    const std::vector<absl::Status> statuses = testing::RunRanks(kRanks, [&](int r) -> absl::Status {
      device::Device* device = all[r % devices].get();
      ASSIGN_OR_RETURN(const std::unique_ptr<device::Stream> stream, device->NewStream("comm"));
      ASSIGN_OR_RETURN(Communicator * c, world.rank(r)->Group({0, 1, 2, 3}, "comm", stream.get()));
      ASSIGN_OR_RETURN(const std::unique_ptr<device::DeviceMemory> memory,
                       device->Allocate(3 * kRanks * kCount * 8));
      int64_t* const a = reinterpret_cast<int64_t*>(memory->data());
      int64_t *const b = a + kRanks * kCount, *const d = b + kRanks * kCount;
      std::vector<int64_t> host(kCount, r + 1);
      RETURN_IF_ERROR(stream->Copy(a, host.data(), kCount * 8));
      const int next = (r + 1) % kRanks, previous = (r + kRanks - 1) % kRanks;
      for (int step = 0; step < kSteps; ++step) {
        // Whatever a call has read or written is overwritten at once, with numbers that win every maximum.
        constexpr unsigned char kHuge = 0x7e;
        const auto overwrite = [&](int64_t* x) { return stream->Fill(x, kHuge, kRanks * kCount * 8); };
        RETURN_IF_ERROR(c->AllReduce(a, b, kCount, DType::kS64, Reduction::kSum, "sum"));
        RETURN_IF_ERROR(stream->Copy(a, b, kCount * 8));
        RETURN_IF_ERROR(overwrite(b));
        RETURN_IF_ERROR(c->AllGather(a, b, kCount, DType::kS64, "gather"));
        RETURN_IF_ERROR(overwrite(a));
        RETURN_IF_ERROR(c->AllToAll(b, d, kCount, DType::kS64, "exchange"));
        RETURN_IF_ERROR(overwrite(b));
        for (const bool send : {r % 2 == 0, r % 2 != 0}) {
          RETURN_IF_ERROR(send ? c->Send(d, kRanks * kCount * 8, next, 0, "m")
                               : c->Recv(b, kRanks * kCount * 8, previous, 0, "m"));
        }
        RETURN_IF_ERROR(overwrite(d));
        RETURN_IF_ERROR(c->ReduceScatter(b, a, kCount, DType::kS64, Reduction::kMax, "max"));
        RETURN_IF_ERROR(overwrite(b));
        RETURN_IF_ERROR(c->Broadcast(a, kCount, DType::kS64, step % kRanks, "root"));
        RETURN_IF_ERROR(stream->Copy(host.data(), a, kCount * 8));
        RETURN_IF_ERROR(stream->Synchronize());
        int64_t want = 10;
        for (int i = 0; i < step; ++i) want = want * kRanks % 1000003;
        for (int64_t i = 0; i < kCount; ++i) {
          if (host[i] % 1000003 != want) {
            return absl::InternalError(absl::StrCat("step ", step, ": ", host[i], ", not ", want));
          }
        }
        for (int64_t& x : host) x %= 1000003;
        RETURN_IF_ERROR(stream->Copy(a, host.data(), kCount * 8));
      }
      return stream->Synchronize();
    });
    for (const absl::Status& s : statuses) EXPECT_OK(s);
  }
}

TEST(InProcess, AGroupSurvivesAMismatch) {
  InProcessWorld world(2);
  const std::vector<absl::Status> statuses = testing::RunRanks(2, [&](int r) -> absl::Status {
    ASSIGN_OR_RETURN(Communicator * c, world.rank(r)->Group({0, 1}, ""));
    float x = 1;
    ExpectError(c->Broadcast(&x, 1, DType::kF32, r, "root"), absl::StatusCode::kFailedPrecondition, "root 0",
                "root 1");
    int64_t one = 1, two = 2;
    const std::vector<int64_t> none = {0, 0}, some = {1, 1};
    ExpectError(c->AllToAllV(&x, r == 0 ? some : none, &x, none, DType::kF32, "v"),
                absl::StatusCode::kFailedPrecondition, "send 1 1", "receive 0 0");
    ExpectError(r == 0 ? c->Send(&one, 8, 1, 0, "m") : c->Recv(&two, 4, 0, 0, "m"),
                absl::StatusCode::kFailedPrecondition, "8 bytes", "4 bytes");
    RETURN_IF_ERROR(c->AllReduce(&one, &one, 1, DType::kS64, Reduction::kSum, "after"));
    EXPECT_EQ(one, 2);
    return absl::OkStatus();
  });
  for (const absl::Status& s : statuses) EXPECT_OK(s);
}

TEST(InProcess, ReductionsThatDoNotExistAreRefusedBeforeAnyoneWaits) {
  InProcessWorld world(2);
  ASSERT_OK_AND_ASSIGN(Communicator * c, world.rank(0)->Group({0, 1}, ""));
  uint8_t x = 0;
  ExpectError(c->AllReduce(&x, &x, 1, DType::kF8E4M3, Reduction::kSum, "x"),
              absl::StatusCode::kInvalidArgument, "f8e4m3", "all_reduce");
  ExpectError(c->Broadcast(&x, 1, DType::kPred, 2, "x"), absl::StatusCode::kInvalidArgument, "root 2");
  ExpectError(c->Send(&x, 1, 0, 0, "x"), absl::StatusCode::kInvalidArgument, "group rank 0");
}

TEST(InProcess, BadGroupsAreRefused) {
  InProcessWorld world(4);
  ExpectError(world.rank(0)->Group({1, 2}, ""), absl::StatusCode::kInvalidArgument, "rank 0", "[1, 2]");
  ExpectError(world.rank(0)->Group({0, 4}, ""), absl::StatusCode::kInvalidArgument, "below 4");
  ExpectError(world.rank(0)->Group({0, 0}, ""), absl::StatusCode::kInvalidArgument, "at most once");
  ASSERT_OK_AND_ASSIGN(Communicator * a, world.rank(0)->Group({2, 0}, "x"));
  ASSERT_OK_AND_ASSIGN(Communicator * b, world.rank(0)->Group({2, 0}, "x"));
  ASSERT_OK_AND_ASSIGN(Communicator * other, world.rank(0)->Group({2, 0}, "y"));
  EXPECT_EQ(a, b);
  EXPECT_NE(a, other);
  EXPECT_EQ(a->rank(), 1);
}

TEST(InProcess, AbortReachesGroupsMadeLater) {
  InProcessWorld world(1);
  world.Abort(absl::InternalError("gone"));
  ASSERT_OK_AND_ASSIGN(Communicator * c, world.rank(0)->Group({0}, ""));
  ExpectError(c->Barrier("x"), absl::StatusCode::kAborted, "gone");
}

TEST(InProcess, AMessageNobodyReceivesTimesOut) {
  InProcessWorld world(2, {.timeout = absl::Milliseconds(50)});
  ASSERT_OK_AND_ASSIGN(Communicator * c, world.rank(0)->Group({0, 1}, ""));
  int x = 0;
  ExpectError(c->Send(&x, sizeof(x), 1, 9, "act.0"), absl::StatusCode::kDeadlineExceeded, "act.0", "tag 9",
              "rank 1 never came");
  ExpectError(c->Barrier("x"), absl::StatusCode::kDeadlineExceeded, "act.0");
}

// Eight ranks share one token: each collective can only finish if those who wait have given theirs up.
TEST(InProcess, ThoseWhoWaitLetOthersCompute) {
  for (int64_t small_bytes : {int64_t{0}, int64_t{1} << 30}) {
    InProcessWorld world(8, {.small_bytes = small_bytes});
    ComputeGate gate(1);
    std::atomic<int> computing = 0;
    const std::vector<absl::Status> statuses = testing::RunRanks(8, [&](int r) -> absl::Status {
      ASSIGN_OR_RETURN(Communicator * c, world.rank(r)->Group({0, 1, 2, 3, 4, 5, 6, 7}, ""));
      ComputeGate::Scope scope(&gate);
      for (int i = 0; i < 50; ++i) {
        EXPECT_EQ(++computing, 1);
        std::this_thread::yield();
        --computing;
        double x = r;
        RETURN_IF_ERROR(c->AllReduce(&x, &x, 1, DType::kF64, Reduction::kSum, "x"));
        EXPECT_EQ(x, 28);
        if (r < 2) {
          RETURN_IF_ERROR(r == 0 ? c->Send(&x, 8, 1, 0, "m") : c->Recv(&x, 8, 0, 0, "m"));
        }
      }
      return absl::OkStatus();
    });
    for (const absl::Status& s : statuses) EXPECT_OK(s);
  }
}

}  // namespace
}  // namespace moe::comm
