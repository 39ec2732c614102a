#include "moe/runtime/wire_transfer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/comm/in_process/in_process.h"
#include "moe/device/wire_codec.h"

namespace moe::runtime {
namespace {

constexpr int kRanks = 3;
using Floats = std::vector<float>;

Floats Travel(WireFormat wire, const Floats& x) {
  const int64_t n = static_cast<int64_t>(x.size());
  std::vector<char> bytes(WireBytes(wire, DType::kF32, n));
  device::EncodeWire(wire, DType::kF32, x.data(), n, bytes.data());
  Floats y(n);
  device::DecodeWire(wire, bytes.data(), n, 0, n, y.data());
  return y;
}

Floats Random(int64_t n, int salt) {
  std::mt19937_64 rng(77 + salt);
  std::normal_distribution<float> normal;
  Floats x(n);
  for (float& v : x) v = normal(rng);
  return x;
}

// Runs `f` on all ranks; scratch has what the call may use, and a guard.
void OnAllRanks(WireFormat wire, StepKind kind, int64_t in, int64_t out,
                const std::function<absl::Status(WireTransfer&, comm::Communicator*, char*)>& f) {
  comm::InProcessWorld world(kRanks, {.timeout = absl::Seconds(20)});
  std::vector<absl::Status> statuses(kRanks);
  std::vector<std::thread> threads;
  for (int r = 0; r < kRanks; ++r) {
    threads.emplace_back([&, r] {
      statuses[r] = [&]() -> absl::Status {
        ASSIGN_OR_RETURN(comm::Communicator * c, world.rank(r)->Group({0, 1, 2}, "t"));
        WireTransfer t(wire, DType::kF32, kRanks);
        const int64_t bytes = WireTransfer::WorkspaceBytes(wire, DType::kF32, kind, kRanks, in, out);
        std::vector<char> scratch(bytes + 1, 0x55);
        RETURN_IF_ERROR(f(t, c, scratch.data()));
        EXPECT_EQ(scratch.back(), 0x55);
        return absl::OkStatus();
      }();
    });
  }
  for (std::thread& t : threads) t.join();
  for (const absl::Status& s : statuses) EXPECT_OK(s);
}

const char* Bytes(const Floats& x) { return reinterpret_cast<const char*>(x.data()); }
char* Bytes(Floats& x) { return reinterpret_cast<char*>(x.data()); }

class WireTransferTest : public ::testing::TestWithParam<WireFormat> {};

TEST_P(WireTransferTest, BlocksArriveAsTheyTravel) {
  const std::vector<std::vector<int64_t>> counts = {{5, 130, 0}, {1, 128, 300}, {0, 7, 256}};  // from, to
  OnAllRanks(
      GetParam(), StepKind::kAllToAll, 500, 700, [&](WireTransfer& t, comm::Communicator* c, char* scratch) {
        const int me = c->rank();
        const Floats in = Random(std::accumulate(counts[me].begin(), counts[me].end(), int64_t{0}), me);
        std::vector<int64_t> receive;
        for (const auto& from : counts) receive.push_back(from[me]);
        Floats out(std::accumulate(receive.begin(), receive.end(), int64_t{0}));
        RETURN_IF_ERROR(t.AllToAll(c, Bytes(in), counts[me], Bytes(out), receive, scratch, "x"));
        int64_t at = 0, sent = 0;
        for (int p = 0; p < kRanks; ++p) {
          const Floats all = Random(std::accumulate(counts[p].begin(), counts[p].end(), int64_t{0}), p);
          const int64_t begin = std::accumulate(counts[p].begin(), counts[p].begin() + me, int64_t{0});
          const Floats want =
              Travel(GetParam(), Floats(all.begin() + begin, all.begin() + begin + receive[p]));
          EXPECT_EQ(Floats(out.begin() + at, out.begin() + at + receive[p]), want) << p << " -> " << me;
          at += receive[p];
          if (p != me) sent += WireBytes(GetParam(), DType::kF32, counts[me][p]);
        }
        EXPECT_EQ(t.bytes_sent(), sent);
        return absl::OkStatus();
      });
}

TEST_P(WireTransferTest, GathersPartsOfDifferentSizes) {
  const std::vector<int64_t> counts = {200, 0, 3};
  OnAllRanks(GetParam(), StepKind::kAllGather, 200, 203,
             [&](WireTransfer& t, comm::Communicator* c, char* scratch) {
               Floats out(203), want;
               RETURN_IF_ERROR(t.AllGather(c, Bytes(Random(counts[c->rank()], c->rank())), counts[c->rank()],
                                           Bytes(out), counts, scratch, "x"));
               for (int p = 0; p < kRanks; ++p) {
                 const Floats part = Travel(GetParam(), Random(counts[p], p));
                 want.insert(want.end(), part.begin(), part.end());
               }
               EXPECT_EQ(out, want);
               return absl::OkStatus();
             });
}

// What a rank receives is rounded once on the wire; sums are in f32.
TEST_P(WireTransferTest, SumsInF32) {
  const std::vector<int64_t> counts = {300, 128, 1};
  OnAllRanks(GetParam(), StepKind::kReduceScatter, 429, 300,
             [&](WireTransfer& t, comm::Communicator* c, char* scratch) {
               const int me = c->rank();
               const int64_t begin = std::accumulate(counts.begin(), counts.begin() + me, int64_t{0});
               Floats out(counts[me]), want(counts[me]);
               RETURN_IF_ERROR(t.ReduceScatter(c, Bytes(Random(429, me)), counts, Bytes(out), Reduction::kSum,
                                               scratch, "x"));
               for (int p = 0; p < kRanks; ++p) {
                 const Floats all = Random(429, p);
                 const Floats part =
                     Travel(GetParam(), Floats(all.begin() + begin, all.begin() + begin + counts[me]));
                 for (int64_t i = 0; i < counts[me]; ++i) want[i] = p == 0 ? part[i] : want[i] + part[i];
               }
               EXPECT_EQ(out, want);
               return absl::OkStatus();
             });
}

TEST_P(WireTransferTest, AllRanksGetTheSameSum) {
  for (const int64_t n : {1, 100, 384, 1000}) {
    std::vector<Floats> got(kRanks);
    OnAllRanks(GetParam(), StepKind::kAllReduce, n, n,
               [&](WireTransfer& t, comm::Communicator* c, char* scratch) {
                 got[c->rank()] = Random(n, c->rank());  // in place
                 char* x = Bytes(got[c->rank()]);
                 return t.AllReduce(c, x, x, n, Reduction::kSum, scratch, "x");
               });
    const double unit = GetParam() == WireFormat::kBF16 ? 1.0 / 256 : 1.0 / 16;
    for (int r = 1; r < kRanks; ++r) EXPECT_EQ(got[r], got[0]);
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0, size = 0;
      for (int p = 0; p < kRanks; ++p) {
        sum += Random(n, p)[i];
        size += std::abs(Random(n, p)[i]);
      }
      EXPECT_NEAR(got[0][i], sum, unit * (2 * size + 0.1));  // rounded going, and the sum coming back
    }
  }
}

TEST_P(WireTransferTest, ALargestValueThatIsNoNumberIsSeen) {
  OnAllRanks(GetParam(), StepKind::kAllReduce, 4, 4,
             [&](WireTransfer& t, comm::Communicator* c, char* scratch) {
               Floats x = {1, 2, 3, c->rank() == 1 ? NAN : 4.0f};
               RETURN_IF_ERROR(t.AllReduce(c, Bytes(x), Bytes(x), 4, Reduction::kMax, scratch, "x"));
               EXPECT_TRUE(std::isnan(x[3]));
               return absl::OkStatus();
             });
}

INSTANTIATE_TEST_SUITE_P(Wires, WireTransferTest, ::testing::Values(WireFormat::kBF16, WireFormat::kF8),
                         [](const auto& info) { return info.param == WireFormat::kBF16 ? "bf16" : "f8"; });

}  // namespace
}  // namespace moe::runtime
