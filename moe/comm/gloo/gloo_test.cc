#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/comm/gloo/gloo_world.h"
#include "moe/comm/in_process/in_process.h"
#include "moe/testing/conformance.h"

namespace moe::comm {
namespace {

using testing::CommunicatorConformance;

using ::testing::HasSubstr;

// Ranks in threads of this process, but connected as processes are.
class Worlds : public testing::WorldSet {
 public:
  static absl::StatusOr<std::unique_ptr<testing::WorldSet>> Make(int n, const GlooOptions& options) {
    auto set = std::make_unique<Worlds>();
    set->worlds_.resize(n);
    const std::vector<absl::Status> statuses = testing::RunRanks(n, [&](int r) -> absl::Status {
      ASSIGN_OR_RETURN(set->worlds_[r], GlooWorld::Connect(r, n, &set->store_, options));
      return absl::OkStatus();
    });
    for (const absl::Status& s : statuses) RETURN_IF_ERROR(s);
    return set;
  }
  World* rank(int rank) override { return worlds_[rank].get(); }
  void End(int rank) { worlds_[rank].reset(); }

 private:
  MemoryStore store_;
  std::vector<std::unique_ptr<GlooWorld>> worlds_;
};

testing::CommBackend Backend(std::string name, int64_t eager_bytes, int max_ranks) {
  testing::CommBackend backend;
  backend.name = std::move(name);
  backend.max_ranks = max_ranks;
  backend.make = [eager_bytes](int n, absl::Duration timeout) {
    // Connecting is given the time of a busy machine, whatever a test of timeouts asks for.
    return Worlds::Make(
        n, {.timeout = timeout, .connect_timeout = absl::Seconds(60), .eager_bytes = eager_bytes});
  };
  return backend;
}

// As it is used, and with nothing in the headers.
INSTANTIATE_TEST_SUITE_P(Gloo, CommunicatorConformance,
                         ::testing::Values(Backend("Default", GlooOptions().eager_bytes, 8),
                                           Backend("Apart", 0, 3)),
                         testing::CommBackendName);

TEST(Gloo, SumsHaveTheBitsOfTheInProcessBackEnd) {
  constexpr int kRanks = 5;
  constexpr int64_t kCount = 4099;
  const auto input = [](int r) {
    std::vector<float> x(kCount);
    for (int64_t i = 0; i < kCount; ++i) x[i] = std::ldexp(std::sin(i * 7 + r), (i * 5 + r * 11) % 40 - 20);
    return x;
  };
  const auto run = [&](const std::function<World*(int)>& world) {
    std::vector<std::vector<float>> out(kRanks, std::vector<float>(kCount));
    for (const absl::Status& s : testing::RunRanks(kRanks, [&](int r) -> absl::Status {
           ASSIGN_OR_RETURN(Communicator * c, world(r)->Group({4, 2, 0, 1, 3}, ""));
           return c->AllReduce(input(r).data(), out[r].data(), kCount, DType::kF32, Reduction::kSum, "x");
         })) {
      EXPECT_OK(s);
    }
    return out;
  };
  ASSERT_OK_AND_ASSIGN(auto worlds, Worlds::Make(kRanks, {}));
  InProcessWorld reference(kRanks);
  const auto got = run([&](int r) { return worlds->rank(r); });
  const auto want = run([&](int r) { return reference.rank(r); });
  for (int r = 0; r < kRanks; ++r) {
    EXPECT_EQ(0, std::memcmp(got[r].data(), want[r].data(), kCount * sizeof(float))) << "rank " << r;
  }
}

TEST(Gloo, AGroupSurvivesAMismatch) {
  ASSERT_OK_AND_ASSIGN(auto worlds, Worlds::Make(2, {}));
  const std::vector<absl::Status> statuses = testing::RunRanks(2, [&](int r) -> absl::Status {
    ASSIGN_OR_RETURN(Communicator * c, worlds->rank(r)->Group({0, 1}, ""));
    float x = 1;
    ExpectError(c->Broadcast(&x, 1, DType::kF32, r, "root"), absl::StatusCode::kFailedPrecondition, "root 0",
                "root 1");
    int64_t one = 1, two = 2;
    const std::vector<int64_t> none = {0, 0}, some = {1, 1};
    ExpectError(c->AllToAllV(&x, r == 0 ? some : none, &x, none, DType::kF32, "v"),
                absl::StatusCode::kFailedPrecondition, "all_to_all_v", "4 bytes", "0");
    ExpectError(r == 0 ? c->Send(&one, 8, 1, 0, "m") : c->Recv(&two, 4, 0, 0, "m"),
                absl::StatusCode::kFailedPrecondition, "8 bytes", "4 bytes");
    RETURN_IF_ERROR(c->AllReduce(&one, &one, 1, DType::kS64, Reduction::kSum, "after"));
    EXPECT_EQ(one, 2);
    return absl::OkStatus();
  });
  for (const absl::Status& s : statuses) EXPECT_OK(s);
}

TEST(Gloo, NamesLongerThanAHeaderAreToldApart) {
  ASSERT_OK_AND_ASSIGN(auto worlds, Worlds::Make(2, {}));
  const std::string name(1000, 'n');
  const std::vector<absl::Status> statuses = testing::RunRanks(2, [&](int r) -> absl::Status {
    ASSIGN_OR_RETURN(Communicator * c, worlds->rank(r)->Group({0, 1}, ""));
    RETURN_IF_ERROR(c->Barrier(name));
    return c->Barrier(absl::StrCat(name, r));
  });
  for (const absl::Status& s : statuses) ExpectError(s, absl::StatusCode::kFailedPrecondition, "nnn");
}

TEST(Gloo, AMessageNobodyReceivesTimesOut) {
  ASSERT_OK_AND_ASSIGN(auto worlds, Worlds::Make(2, {.timeout = absl::Milliseconds(100),
                                                     .connect_timeout = absl::Seconds(60)}));
  ASSERT_OK_AND_ASSIGN(Communicator * c, worlds->rank(0)->Group({0, 1}, ""));
  int x = 0;
  ExpectError(c->Send(&x, sizeof(x), 1, 9, "act.0"), absl::StatusCode::kDeadlineExceeded, "act.0", "tag 9",
              "rank 1 never came");
  ExpectError(c->Send(&x, sizeof(x), 1, int64_t{1} << 30, "act.0"), absl::StatusCode::kInvalidArgument,
              "tag");
}

TEST(Gloo, RanksThatDoNotComeAreNamed) {
  MemoryStore store;
  const std::vector<absl::Status> statuses = testing::RunRanks(2, [&](int i) {
    return GlooWorld::Connect(i * 2, 4, &store, {.connect_timeout = absl::Milliseconds(500)}).status();
  });
  ExpectError(statuses[0], absl::StatusCode::kDeadlineExceeded, "rank 0", "missing: 1, 3");
  EXPECT_FALSE(statuses[1].ok());
}

// A socket that is connected to a port of loopback; -1 if nobody listens there.
int ConnectTo(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(static_cast<uint16_t>(port));
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<sockaddr*>(&a), sizeof(a)) == 0) return fd;
  close(fd);
  return -1;
}

// They come first, say what they like or nothing, and stay.
TEST(Gloo, StrangersAtAPortDoNotKeepTheRanksApart) {
  MemoryStore store;
  std::atomic<int> port = 0;
  std::vector<int> strangers;
  const std::vector<absl::Status> statuses = testing::RunRanks(2, [&](int r) -> absl::Status {
    if (r == 1) {
      ASSIGN_OR_RETURN(const std::string entry, store.Get("ranks/0", absl::Seconds(60)));
      const std::vector<std::string> parts = absl::StrSplit(entry, ' ');
      int number = 0;
      EXPECT_TRUE(parts.size() == 3 && absl::SimpleAtoi(parts[1], &number)) << entry;
      port = number;
      for (int i = 0; i < 200; ++i) {
        strangers.push_back(ConnectTo(number));
        EXPECT_GE(strangers.back(), 0);
        const std::string bytes = i % 3 == 0 ? "" : std::string(i, i % 3 == 1 ? '\0' : 'G');
        EXPECT_GE(send(strangers.back(), bytes.data(), bytes.size(), MSG_NOSIGNAL), 0);
      }
    }
    ASSIGN_OR_RETURN(const auto world, GlooWorld::Connect(r, 2, &store, {}));
    ASSIGN_OR_RETURN(Communicator * c, world->Group({0, 1}, ""));
    int64_t sum = r + 1;
    RETURN_IF_ERROR(c->AllReduce(&sum, &sum, 1, DType::kS64, Reduction::kSum, "sum"));
    EXPECT_EQ(sum, 3);
    EXPECT_EQ(ConnectTo(port), -1) << "the port is still open";
    return c->Barrier("before either closes its connections");
  });
  for (const absl::Status& s : statuses) EXPECT_OK(s);
  for (const int fd : strangers) close(fd);
}

TEST(Gloo, OverIpv6) {
  if (!IsFolder("/proc/sys/net/ipv6")) GTEST_SKIP() << "this system has no IPv6";
  ASSERT_OK_AND_ASSIGN(auto worlds, Worlds::Make(3, {.address = "::1"}));
  for (const absl::Status& s : testing::RunRanks(3, [&](int r) -> absl::Status {
         ASSIGN_OR_RETURN(Communicator * c, worlds->rank(r)->Group({0, 1, 2}, ""));
         return c->Barrier("all are there");
       })) {
    EXPECT_OK(s);
  }
}

TEST(Gloo, ARankThatGivesUpWhileOthersConnectIsNotWaitedFor) {
  MemoryStore store;
  const absl::Time start = absl::Now();
  const std::vector<absl::Status> statuses = testing::RunRanks(3, [&](int r) -> absl::Status {
    if (r < 2) return GlooWorld::Connect(r, 3, &store, {.connect_timeout = absl::Seconds(100)}).status();
    RETURN_IF_ERROR(store.Set("ranks/2", "127.0.0.1 1 none"));
    absl::SleepFor(absl::Milliseconds(200));
    AnnounceAbort(&store, 2, absl::NotFoundError("no text"));
    return absl::OkStatus();
  });
  for (int r : {0, 1}) ExpectError(statuses[r], absl::StatusCode::kAborted, "rank 2", "no text");
  EXPECT_LT(absl::Now() - start, absl::Seconds(50)) << "waited for the timeout";
}

TEST(Gloo, APeerThatEndsIsNamedAtOnce) {
  ASSERT_OK_AND_ASSIGN(auto set, Worlds::Make(3, {}));
  Worlds& worlds = static_cast<Worlds&>(*set);
  const absl::Time start = absl::Now();
  const std::vector<absl::Status> statuses = testing::RunRanks(3, [&](int r) -> absl::Status {
    float x = 1;
    ASSIGN_OR_RETURN(Communicator * all, worlds.rank(r)->Group({0, 1, 2}, ""));
    RETURN_IF_ERROR(all->AllReduce(&x, &x, 1, DType::kF32, Reduction::kSum, "first"));
    RETURN_IF_ERROR(all->Barrier("everybody has it"));
    if (r == 1) {
      absl::SleepFor(absl::Milliseconds(100));
      worlds.End(1);  // closes its connections, as the end of a process does
      return absl::OkStatus();
    }
    const absl::Status s = all->AllReduce(&x, &x, 1, DType::kF32, Reduction::kSum, "layers.3.mlp");
    worlds.rank(r)->Abort(s);
    return s;
  });
  EXPECT_LT(absl::Now() - start, absl::Seconds(50)) << "waited for the timeout";
  for (int r : {0, 2}) {
    EXPECT_FALSE(statuses[r].ok());
    EXPECT_THAT(std::string(statuses[r].message()), HasSubstr("rank 1")) << statuses[r];
  }
}

TEST(Gloo, BadGroupsAndAddressesAreRefused) {
  ASSERT_OK_AND_ASSIGN(auto worlds, Worlds::Make(2, {}));
  ExpectError(worlds->rank(0)->Group({1}, ""), absl::StatusCode::kInvalidArgument, "rank 0", "[1]");
  ExpectError(worlds->rank(0)->Group({0, 2}, ""), absl::StatusCode::kInvalidArgument, "below 2");
  MemoryStore store;
  ExpectError(GlooWorld::Connect(0, 1, &store, {.address = "203.0.113.7"}).status(),
              absl::StatusCode::kUnavailable, "203.0.113.7");
}

}  // namespace
}  // namespace moe::comm
