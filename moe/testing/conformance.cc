#include "moe/testing/conformance.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"

namespace moe::testing {

std::string CommBackendName(const ::testing::TestParamInfo<CommBackend>& info) { return info.param.name; }

std::vector<absl::Status> RunRanks(int num_ranks, const std::function<absl::Status(int rank)>& body) {
  std::vector<absl::Status> statuses(num_ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < num_ranks; ++r) {
    threads.emplace_back([&, r] { statuses[r] = body(r); });
  }
  for (std::thread& t : threads) t.join();
  return statuses;
}

void CommunicatorConformance::SetUp() {
  if (!GetParam().unavailable.empty()) GTEST_SKIP() << GetParam().name << ": " << GetParam().unavailable;
}

std::unique_ptr<WorldSet> CommunicatorConformance::Make(int num_ranks, absl::Duration timeout) {
  auto worlds = GetParam().make(num_ranks, timeout);
  EXPECT_TRUE(worlds.ok()) << worlds.status();
  return worlds.ok() ? *std::move(worlds) : nullptr;
}

std::vector<int> CommunicatorConformance::GroupSizes() const {
  std::vector<int> sizes;
  for (int n : {1, 2, 3, 5, 8}) {
    if (n <= GetParam().max_ranks) sizes.push_back(n);
  }
  return sizes;
}

namespace {

std::vector<int64_t> Iota(int n) {
  std::vector<int64_t> ranks(n);
  for (int i = 0; i < n; ++i) ranks[i] = i;
  return ranks;
}

const std::vector<DType> kReducible = {DType::kF32, DType::kF64, DType::kBF16,
                                       DType::kF16, DType::kS32, DType::kS64};
const std::vector<DType> kMovable = {DType::kF32, DType::kF64, DType::kBF16, DType::kF16,
                                     DType::kS32, DType::kS64, DType::kPred, DType::kF8E4M3};
const std::vector<int64_t> kCounts = {0, 1, 7, 1003, 6007};

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}
uint64_t Random(int64_t stream, int64_t i) { return Mix(Mix(stream * 2 + 1) + 0x9e3779b97f4a7c15 * (i + 1)); }

// The nearest bf16 value, ties to even, by looking at both neighbours.
uint16_t NearestBF16(float x) {
  const uint16_t down = std::bit_cast<uint32_t>(x) >> 16, up = down + 1;
  const auto value = [](uint16_t b) { return double{std::bit_cast<float>(uint32_t{b} << 16)}; };
  const double to_down = std::abs(x - value(down)), to_up = std::abs(x - value(up));
  if (to_down != to_up) return to_down < to_up ? down : up;
  return down % 2 == 0 ? down : up;
}

double Get(const std::vector<char>& buffer, DType dtype, int64_t i) {
  const char* p = buffer.data() + i * ByteSize(dtype);
  const auto as = [p](auto x) {
    std::memcpy(&x, p, sizeof(x));
    return x;
  };
  switch (dtype) {
    case DType::kF32:
      return as(float{});
    case DType::kF64:
      return as(double{});
    case DType::kBF16:
      return std::bit_cast<float>(uint32_t{as(uint16_t{})} << 16);
    case DType::kF16:
      return static_cast<double>(as(_Float16{}));
    case DType::kS32:
      return as(int32_t{});
    case DType::kS64:
      return static_cast<double>(as(int64_t{}));
    default:
      return as(uint8_t{});
  }
}

void Set(std::vector<char>& buffer, DType dtype, int64_t i, double v) {
  char* p = buffer.data() + i * ByteSize(dtype);
  const auto put = [p](auto x) { std::memcpy(p, &x, sizeof(x)); };
  switch (dtype) {
    case DType::kF32:
      return put(static_cast<float>(v));
    case DType::kF64:
      return put(v);
    case DType::kBF16:
      return put(NearestBF16(static_cast<float>(v)));
    case DType::kF16:
      return put(static_cast<_Float16>(static_cast<float>(v)));
    case DType::kS32:
      return put(static_cast<int32_t>(v));
    case DType::kS64:
      return put(static_cast<int64_t>(v));
    default:
      return put(static_cast<uint8_t>(v));
  }
}

// Element i of what rank `rank` contributes.
double Element(DType dtype, int rank, int64_t i) {
  const uint64_t x = Random(rank * 131 + static_cast<int>(dtype), i);
  if (!IsFloat(dtype) || dtype == DType::kF8E4M3) return static_cast<double>(x % 100);
  std::vector<char> rounded(8);
  Set(rounded, dtype, 0, (static_cast<double>(x >> 11) / (uint64_t{1} << 53) - 0.5) * 8);
  return Get(rounded, dtype, 0);
}

std::vector<char> Buffer(DType dtype, int64_t count) {
  return std::vector<char>(count * ByteSize(dtype) + 1, 0x5a);
}

std::vector<char> Contribution(DType dtype, int rank, int64_t count, int64_t first = 0) {
  std::vector<char> b = Buffer(dtype, count);
  for (int64_t i = 0; i < count; ++i) Set(b, dtype, i, Element(dtype, rank, first + i));
  return b;
}

// The reduction of element i over all ranks, in ascending order.
double Reduced(DType dtype, Reduction kind, int ranks, int64_t i) {
  double wide = Element(dtype, 0, i);
  for (int r = 1; r < ranks; ++r) {
    const double x = Element(dtype, r, i);
    wide = kind == Reduction::kMax ? std::max(wide, x)
           : dtype == DType::kF64 || !IsFloat(dtype)
               ? wide + x
               : double{static_cast<float>(wide) + static_cast<float>(x)};
  }
  return wide;
}

std::string Where(comm::Communicator* c, DType dtype, int64_t count) {
  return absl::StrCat("rank ", c->rank(), " of ", c->size(), ", ", DTypeName(dtype), "[", count, "]");
}

// got[i] must be the reduction of element first + i.
absl::Status ExpectReduced(comm::Communicator* c, const std::vector<char>& got, DType dtype, Reduction kind,
                           int64_t count, int64_t first, bool native_order) {
  std::vector<char> want = Buffer(dtype, count);
  for (int64_t i = 0; i < count; ++i) Set(want, dtype, i, Reduced(dtype, kind, c->size(), first + i));
  if (!native_order && got == want) return absl::OkStatus();
  for (int64_t i = 0; i < count; ++i) {
    const double a = Get(got, dtype, i), b = Get(want, dtype, i);
    const double tolerance = native_order && IsFloat(dtype) ? 1e-2 * (1 + std::abs(b)) : 0;
    if (!(std::abs(a - b) <= tolerance)) {
      return absl::InternalError(
          absl::StrCat(Where(c, dtype, count), ": element ", i, " is ", a, ", not ", b));
    }
  }
  if (got.back() != want.back()) return absl::InternalError("wrote behind the buffer");
  return absl::OkStatus();
}

absl::Status ExpectEqual(comm::Communicator* c, const std::vector<char>& got, const std::vector<char>& want,
                         DType dtype, int64_t count) {
  if (got == want) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(Where(c, dtype, count), ": wrong data"));
}

void Append(std::vector<char>& to, const std::vector<char>& block) {
  // Each buffer carries one guard byte at its end.
  to.insert(to.end() - 1, block.begin(), block.end() - 1);
}

std::vector<char> Joined(const std::vector<std::vector<char>>& blocks) {
  std::vector<char> all(1, 0x5a);
  for (const std::vector<char>& b : blocks) Append(all, b);
  return all;
}

}  // namespace

void CommunicatorConformance::OnAll(int num_ranks,
                                    const std::function<absl::Status(comm::Communicator*)>& body) {
  std::unique_ptr<WorldSet> worlds = Make(num_ranks);
  ASSERT_NE(worlds, nullptr);
  const std::vector<int64_t> all = Iota(num_ranks);
  const std::vector<absl::Status> statuses = RunRanks(num_ranks, [&](int r) -> absl::Status {
    absl::Status status = [&]() -> absl::Status {
      ASSIGN_OR_RETURN(comm::Communicator * c, worlds->rank(r)->Group(all, "test"));
      return body(c);
    }();
    if (!status.ok()) worlds->rank(r)->Abort(status);
    return status;
  });
  for (const absl::Status& s : statuses) EXPECT_OK(s);
}

TEST_P(CommunicatorConformance, AllReduce) {
  const bool native = GetParam().native_order;
  for (int n : GroupSizes()) {
    OnAll(n, [&](comm::Communicator* c) -> absl::Status {
      for (DType dtype : kReducible) {
        for (int64_t count : kCounts) {
          for (Reduction kind : {Reduction::kSum, Reduction::kMax}) {
            const std::vector<char> in = Contribution(dtype, c->rank(), count);
            std::vector<char> out = Buffer(dtype, count), both = in;
            RETURN_IF_ERROR(c->AllReduce(in.data(), out.data(), count, dtype, kind, "x"));
            RETURN_IF_ERROR(ExpectReduced(c, out, dtype, kind, count, 0, native));
            RETURN_IF_ERROR(c->AllReduce(both.data(), both.data(), count, dtype, kind, "in place"));
            RETURN_IF_ERROR(ExpectReduced(c, both, dtype, kind, count, 0, native));
          }
        }
      }
      return absl::OkStatus();
    });
  }
}

TEST_P(CommunicatorConformance, ReduceScatter) {
  const bool native = GetParam().native_order;
  for (int n : GroupSizes()) {
    OnAll(n, [&](comm::Communicator* c) -> absl::Status {
      for (DType dtype : kReducible) {
        for (int64_t count : kCounts) {
          for (Reduction kind : {Reduction::kSum, Reduction::kMax}) {
            const std::vector<char> in = Contribution(dtype, c->rank(), count * n);
            std::vector<char> out = Buffer(dtype, count);
            RETURN_IF_ERROR(c->ReduceScatter(in.data(), out.data(), count, dtype, kind, "x"));
            RETURN_IF_ERROR(ExpectReduced(c, out, dtype, kind, count, c->rank() * count, native));
          }
        }
      }
      return absl::OkStatus();
    });
  }
}

TEST_P(CommunicatorConformance, ReduceScatterOfUnequalBlocks) {
  const bool native = GetParam().native_order;
  for (int n : GroupSizes()) {
    OnAll(n, [&](comm::Communicator* c) -> absl::Status {
      for (DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
        for (int64_t unit : {0, 1, 331}) {
          std::vector<int64_t> counts;
          int64_t total = 0, first = 0;
          for (int p = 0; p < n; ++p) {
            if (p == c->rank()) first = total;
            counts.push_back((p * 5 + 1) % 3 * unit);  // some empty
            total += counts.back();
          }
          const int64_t mine = counts[c->rank()];
          const std::vector<char> in = Contribution(dtype, c->rank(), total);
          std::vector<char> out = Buffer(dtype, mine);
          RETURN_IF_ERROR(c->ReduceScatterV(in.data(), counts, out.data(), dtype, Reduction::kSum, "x"));
          RETURN_IF_ERROR(ExpectReduced(c, out, dtype, Reduction::kSum, mine, first, native));
        }
      }
      return absl::OkStatus();
    });
  }
}

TEST_P(CommunicatorConformance, AllGather) {
  for (int n : GroupSizes()) {
    OnAll(n, [&](comm::Communicator* c) -> absl::Status {
      for (DType dtype : kMovable) {
        for (int64_t count : kCounts) {
          std::vector<std::vector<char>> blocks;
          for (int p = 0; p < n; ++p) blocks.push_back(Contribution(dtype, p, count));
          std::vector<char> out = Buffer(dtype, count * n);
          RETURN_IF_ERROR(c->AllGather(blocks[c->rank()].data(), out.data(), count, dtype, "x"));
          RETURN_IF_ERROR(ExpectEqual(c, out, Joined(blocks), dtype, count));
        }
      }
      return absl::OkStatus();
    });
  }
}

TEST_P(CommunicatorConformance, AllGatherOfUnequalBlocks) {
  for (int n : GroupSizes()) {
    OnAll(n, [&](comm::Communicator* c) -> absl::Status {
      for (DType dtype : {DType::kF32, DType::kS32, DType::kBF16}) {
        for (int64_t unit : {0, 1, 331}) {
          std::vector<std::vector<char>> blocks;
          std::vector<int64_t> counts;
          for (int p = 0; p < n; ++p) {
            counts.push_back((p * 5 + 1) % 3 * unit);
            blocks.push_back(Contribution(dtype, p, counts.back()));
          }
          const std::vector<char> want = Joined(blocks);
          std::vector<char> out(want.size(), 0x5a);
          RETURN_IF_ERROR(
              c->AllGatherV(blocks[c->rank()].data(), counts[c->rank()], out.data(), counts, dtype, "x"));
          RETURN_IF_ERROR(ExpectEqual(c, out, want, dtype, unit));
        }
      }
      return absl::OkStatus();
    });
  }
}

TEST_P(CommunicatorConformance, AllToAll) {
  for (int n : GroupSizes()) {
    OnAll(n, [&](comm::Communicator* c) -> absl::Status {
      for (DType dtype : kMovable) {
        for (int64_t count : kCounts) {
          const std::vector<char> in = Contribution(dtype, c->rank(), count * n);
          std::vector<std::vector<char>> want;
          for (int p = 0; p < n; ++p) want.push_back(Contribution(dtype, p, count, c->rank() * count));
          std::vector<char> out = Buffer(dtype, count * n);
          RETURN_IF_ERROR(c->AllToAll(in.data(), out.data(), count, dtype, "x"));
          RETURN_IF_ERROR(ExpectEqual(c, out, Joined(want), dtype, count));
        }
      }
      return absl::OkStatus();
    });
  }
}

TEST_P(CommunicatorConformance, AllToAllOfUnequalBlocksWithEmptyPeers) {
  for (int n : GroupSizes()) {
    OnAll(n, [&](comm::Communicator* c) -> absl::Status {
      for (DType dtype : {DType::kF32, DType::kF64, DType::kS32, DType::kBF16}) {
        for (int64_t unit : {0, 1, 331, 5003}) {
          // Rank 0 sends nothing to anybody; the last rank receives nothing.
          const auto elements = [&](int from, int to) {
            return n > 1 && (from == 0 || to == n - 1) ? 0 : (from * 7 + to * 3 + 1) % 4 * unit;
          };
          std::vector<std::vector<char>> send, want;
          std::vector<int64_t> send_counts, receive_counts;
          for (int p = 0; p < n; ++p) {
            send_counts.push_back(elements(c->rank(), p));
            send.push_back(Contribution(dtype, c->rank(), send_counts.back(), p * 100000));
            receive_counts.push_back(elements(p, c->rank()));
            want.push_back(Contribution(dtype, p, receive_counts.back(), c->rank() * 100000));
          }
          const std::vector<char> in = Joined(send), expected = Joined(want);
          std::vector<char> out(expected.size(), 0x5a);
          RETURN_IF_ERROR(c->AllToAllV(in.data(), send_counts, out.data(), receive_counts, dtype, "x"));
          RETURN_IF_ERROR(ExpectEqual(c, out, expected, dtype, unit));
        }
      }
      return absl::OkStatus();
    });
  }
}

TEST_P(CommunicatorConformance, BroadcastFromEveryRoot) {
  for (int n : GroupSizes()) {
    OnAll(n, [&](comm::Communicator* c) -> absl::Status {
      for (DType dtype : kMovable) {
        for (int64_t count : kCounts) {
          for (int root = 0; root < n; ++root) {
            std::vector<char> data = Contribution(dtype, c->rank(), count);
            RETURN_IF_ERROR(c->Broadcast(data.data(), count, dtype, root, "x"));
            RETURN_IF_ERROR(ExpectEqual(c, data, Contribution(dtype, root, count), dtype, count));
          }
        }
      }
      return absl::OkStatus();
    });
  }
}

TEST_P(CommunicatorConformance, SendAndReceiveAroundARing) {
  for (int n : GroupSizes()) {
    if (n == 1) continue;
    OnAll(n, [&](comm::Communicator* c) -> absl::Status {
      const int next = (c->rank() + 1) % n, previous = (c->rank() + n - 1) % n;
      for (int64_t bytes : {0, 1, 4097}) {
        for (int64_t tag : {0, 7}) {
          const std::vector<char> mine = Contribution(DType::kPred, c->rank(), bytes, tag);
          std::vector<char> got = Buffer(DType::kPred, bytes);
          const auto send = [&] { return c->Send(mine.data(), bytes, next, tag, "ring"); };
          const auto receive = [&] { return c->Recv(got.data(), bytes, previous, tag, "ring"); };
          // Unbuffered: somebody must receive first.
          if (c->rank() == 0) {
            RETURN_IF_ERROR(send());
            RETURN_IF_ERROR(receive());
          } else {
            RETURN_IF_ERROR(receive());
            RETURN_IF_ERROR(send());
          }
          RETURN_IF_ERROR(
              ExpectEqual(c, got, Contribution(DType::kPred, previous, bytes, tag), DType::kPred, bytes));
        }
      }
      return absl::OkStatus();
    });
  }
}

TEST_P(CommunicatorConformance, NobodyPassesABarrierEarly) {
  for (int n : GroupSizes()) {
    std::atomic<int> before = 0;
    OnAll(n, [&](comm::Communicator* c) -> absl::Status {
      for (int round = 1; round <= 20; ++round) {
        if (c->rank() == round % n) absl::SleepFor(absl::Milliseconds(1));
        ++before;
        RETURN_IF_ERROR(c->Barrier("x"));
        if (before < round * n) return absl::InternalError("passed the barrier before all were there");
        RETURN_IF_ERROR(c->Barrier("y"));
      }
      return absl::OkStatus();
    });
  }
}

TEST_P(CommunicatorConformance, SumsHaveTheSameBitsOnAllRanksAndInAllRuns) {
  const int n = GroupSizes().back();
  constexpr int64_t kCount = 10007;
  std::vector<std::vector<float>> first(n);
  for (int run = 0; run < 5; ++run) {
    std::vector<std::vector<float>> out(n, std::vector<float>(kCount));
    OnAll(n, [&](comm::Communicator* c) {
      std::vector<float> in(kCount);
      for (int64_t i = 0; i < kCount; ++i) {  // magnitudes over 12 decades: the order of addition shows
        const uint64_t x = Random(c->rank(), i);
        in[i] = std::ldexp(static_cast<float>(x >> 40) / (1 << 24) - 0.5f, static_cast<int>(x % 40) - 20);
      }
      absl::SleepFor(absl::Microseconds(100 * ((c->rank() + run) % n)));  // arrive in another order each time
      return c->AllReduce(in.data(), out[c->rank()].data(), kCount, DType::kF32, Reduction::kSum, "x");
    });
    if (run == 0) first = out;
    for (int r = 0; r < n; ++r) {
      EXPECT_EQ(0, std::memcmp(out[r].data(), first[0].data(), kCount * sizeof(float))) << "rank " << r;
    }
  }
}

TEST_P(CommunicatorConformance, CallsThatDoNotMatchFailEverywhere) {
  if (!GetParam().detects_mismatch) GTEST_SKIP() << "the back end cannot see mismatches";
  if (GetParam().max_ranks < 3) GTEST_SKIP() << "needs three ranks";
  std::vector<float> in(64), out(64);
  struct Case {
    const char* name;
    std::function<absl::Status(comm::Communicator*, float*, float*)> odd;  // what rank 1 does
    const char* hint;
  };
  const std::vector<Case> cases = {
      {"op",
       [](comm::Communicator* c, float* a, float* b) { return c->AllGather(a, b, 4, DType::kF32, "first"); },
       "all_gather"},
      {"count",
       [](comm::Communicator* c, float* a, float* b) {
         return c->AllReduce(a, b, 5, DType::kF32, Reduction::kSum, "first");
       },
       "count 5"},
      {"dtype",
       [](comm::Communicator* c, float* a, float* b) {
         return c->AllReduce(a, b, 4, DType::kS32, Reduction::kSum, "first");
       },
       "s32"},
      {"reduction",
       [](comm::Communicator* c, float* a, float* b) {
         return c->AllReduce(a, b, 4, DType::kF32, Reduction::kMax, "first");
       },
       "max"},
      {"name",
       [](comm::Communicator* c, float* a, float* b) {
         return c->AllReduce(a, b, 4, DType::kF32, Reduction::kSum, "second");
       },
       "second"},
  };
  for (const Case& test : cases) {
    SCOPED_TRACE(test.name);
    std::unique_ptr<WorldSet> worlds = Make(3);
    ASSERT_NE(worlds, nullptr);
    const std::vector<absl::Status> statuses = RunRanks(3, [&](int r) -> absl::Status {
      ASSIGN_OR_RETURN(comm::Communicator * c, worlds->rank(r)->Group(Iota(3), "test"));
      std::vector<float> a(16), b(16);
      if (r == 1) return test.odd(c, a.data(), b.data());
      return c->AllReduce(a.data(), b.data(), 4, DType::kF32, Reduction::kSum, "first");
    });
    for (const absl::Status& s : statuses) {
      ExpectError(s, absl::StatusCode::kFailedPrecondition, "all_reduce", "first", test.hint);
    }
  }
}

TEST_P(CommunicatorConformance, AbortWakesThoseWhoWaitAndFailsLaterCalls) {
  const int n = std::min(3, GetParam().max_ranks);
  if (n < 2) GTEST_SKIP() << "needs two ranks";
  std::unique_ptr<WorldSet> worlds = Make(n);
  ASSERT_NE(worlds, nullptr);
  const std::vector<absl::Status> statuses = RunRanks(n, [&](int r) -> absl::Status {
    ASSIGN_OR_RETURN(comm::Communicator * c, worlds->rank(r)->Group(Iota(n), "test"));
    float x = 1;
    if (r == 0) {  // never enters
      absl::SleepFor(absl::Milliseconds(50));
      worlds->rank(r)->Abort(absl::InternalError("disk on fire"));
    } else if (r == 1) {
      const absl::Status s = c->AllReduce(&x, &x, 1, DType::kF32, Reduction::kSum, "x");
      ExpectError(s, absl::StatusCode::kAborted, "disk on fire");
    } else {
      const absl::Status s = c->Recv(&x, sizeof(x), 0, 3, "y");
      ExpectError(s, absl::StatusCode::kAborted, "disk on fire");
    }
    return c->Barrier("later");
  });
  for (const absl::Status& s : statuses) ExpectError(s, absl::StatusCode::kAborted, "disk on fire");
}

TEST_P(CommunicatorConformance, AHangBecomesAnErrorThatNamesTheMissing) {
  if (GetParam().max_ranks < 3) GTEST_SKIP() << "needs three ranks";
  std::unique_ptr<WorldSet> worlds = Make(3, absl::Milliseconds(200));
  ASSERT_NE(worlds, nullptr);
  const std::vector<absl::Status> statuses = RunRanks(3, [&](int r) -> absl::Status {
    ASSIGN_OR_RETURN(comm::Communicator * c, worlds->rank(r)->Group(Iota(3), "test"));
    if (r == 1) return absl::OkStatus();  // never enters
    float x = 1;
    return c->AllReduce(&x, &x, 1, DType::kF32, Reduction::kSum, "layers.3.mlp");
  });
  for (int r : {0, 2}) {
    ExpectError(statuses[r], absl::StatusCode::kDeadlineExceeded, "layers.3.mlp");
    if (GetParam().names_missing_ranks) {
      ExpectError(statuses[r], absl::StatusCode::kDeadlineExceeded, "rank 0 in all_reduce",
                  "rank 2 in all_reduce", "never entered: 1");
    }
  }
}

TEST_P(CommunicatorConformance, ManyGroupsAndChannelsAtOnce) {
  if (GetParam().max_ranks < 8) GTEST_SKIP() << "needs eight ranks";
  // A 2 x 2 x 2 mesh; two queues per rank, each on its own channel, run unrelated sequences over all subsets
  // of axes.
  const Mesh mesh({{"a", 2}, {"b", 2}, {"c", 2}});
  std::unique_ptr<WorldSet> worlds = Make(8);
  ASSERT_NE(worlds, nullptr);
  const auto queue = [&](int r, int channel) -> absl::Status {
    for (int step = 0; step < 150; ++step) {
      const uint64_t x = Random(channel, step);
      AxisList axes;  // of a random subset, in a random direction: groups need not be ascending
      for (AxisId a = 0; a < 3; ++a) {
        if (x >> a & 1) axes.push_back(a);
      }
      if (x >> 3 & 1) std::reverse(axes.begin(), axes.end());
      const std::vector<int64_t> ranks = mesh.Group(r, axes);
      ASSIGN_OR_RETURN(comm::Communicator * c, worlds->rank(r)->Group(ranks, absl::StrCat("queue", channel)));
      const int n = c->size();
      if (ranks[c->rank()] != r) return absl::InternalError("the group is not in the order asked for");
      const int64_t count = (x >> 8) % 7 == 0 ? 9001 : (x >> 8) % 50;
      const std::string what = absl::StrCat("step ", step);
      std::vector<int64_t> in(count * n), out(count * n);
      for (int64_t i = 0; i < count * n; ++i) in[i] = r * 1000003 + i;
      if (x >> 4 & 1) {
        RETURN_IF_ERROR(c->AllReduce(in.data(), out.data(), count, DType::kS64, Reduction::kSum, what));
        int64_t sum = 0;
        for (int64_t p : ranks) sum += p * 1000003;
        for (int64_t i = 0; i < count; ++i) {
          if (out[i] != sum + n * i) return absl::InternalError(absl::StrCat("wrong sum at ", what));
        }
      } else {
        RETURN_IF_ERROR(c->AllToAll(in.data(), out.data(), count, DType::kS64, what));
        for (int64_t i = 0; i < count * n; ++i) {
          if (out[i] != ranks[i / count] * 1000003 + c->rank() * count + i % count) {
            return absl::InternalError(absl::StrCat("wrong block at ", what));
          }
        }
      }
    }
    return absl::OkStatus();
  };
  const std::vector<absl::Status> statuses = RunRanks(16, [&](int i) {
    const absl::Status s = queue(i / 2, i % 2);
    if (!s.ok()) worlds->rank(i / 2)->Abort(s);
    return s;
  });
  for (const absl::Status& s : statuses) EXPECT_OK(s);
}

}  // namespace moe::testing
