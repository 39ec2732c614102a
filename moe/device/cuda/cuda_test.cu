// Kernels that use what the project's kernels use: on a GPU a test of MOE_LAUNCH, in emulation of the
// emulation.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "moe/base/status_matchers.h"
#include "moe/device/cuda/cuda.h"

namespace moe::device {
namespace {

template <typename T>
class Array {
 public:
  explicit Array(int64_t n) : n_(n) { EXPECT_EQ(cudaMalloc(&at_, n * sizeof(T)), cudaSuccess); }
  explicit Array(const std::vector<T>& x) : Array(static_cast<int64_t>(x.size())) {
    EXPECT_EQ(cudaMemcpy(at_, x.data(), n_ * sizeof(T), cudaMemcpyDefault), cudaSuccess);
  }
  ~Array() { cudaFree(at_); }
  T* get() const { return at_; }
  std::vector<T> Read() const {
    std::vector<T> x(n_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(x.data(), at_, n_ * sizeof(T), cudaMemcpyDefault), cudaSuccess);
    return x;
  }

 private:
  T* at_ = nullptr;
  int64_t n_;
};

// One sum per block, by warp shuffles and shared memory.
template <int kThreads>
__global__ void BlockSums(const int* x, int64_t n, long long* sums) {
  __shared__ long long parts[kThreads / 32];
  long long sum = 0;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < n; i += int64_t{kThreads} * gridDim.x) {
    sum += x[i];
  }
  for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, delta);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < kThreads / 32 ? parts[threadIdx.x] : 0;
    for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_down_sync(0xffffffffu, sum, delta);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
  }
}

__global__ void Transpose(const float* x, float* y, int rows, int columns) {
  MOE_DYNAMIC_SHARED(float, tile);  // [32][33]
  for (int r = threadIdx.y; r < 32; r += blockDim.y) {
    const int row = blockIdx.y * 32 + r, column = blockIdx.x * 32 + threadIdx.x;
    if (row < rows && column < columns) tile[r * 33 + threadIdx.x] = x[row * columns + column];
  }
  __syncthreads();
  for (int c = threadIdx.y; c < 32; c += blockDim.y) {
    const int row = blockIdx.y * 32 + threadIdx.x, column = blockIdx.x * 32 + c;
    if (row < rows && column < columns) y[column * rows + row] = tile[threadIdx.x * 33 + c];
  }
}

__global__ void Votes(const int* x, unsigned* ballots, int* counts, int* ranks, int* total) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned ballot = __ballot_sync(0xffffffffu, x[i] % 3 == 0);
  if (threadIdx.x % 32 == 0) ballots[i / 32] = ballot;
  ranks[i] = __popc(__match_any_sync(0xffffffffu, x[i] % 4) & ((1u << (threadIdx.x % 32)) - 1));
  const int count = __syncthreads_count(x[i] % 3 == 0);
  if (threadIdx.x == 0) counts[blockIdx.x] = count;
  atomicAdd(total, x[i]);
}

__global__ void HalfWarps(const int* x, int* y) {
  const unsigned mask = threadIdx.x < 16 ? 0xffffu : 0xffff0000u;
  int sum = x[threadIdx.x];
  if (threadIdx.x < 16) sum = __shfl_sync(mask, sum, 3, 16);  // only these, and one more than the others
  for (int delta = 8; delta > 0; delta /= 2) sum += __shfl_xor_sync(mask, sum, delta, 16);
  __syncwarp();
  y[threadIdx.x] = sum + __shfl_sync(0xffffffffu, sum, 31);
}

template <typename T>
__global__ void Multiply(const T* x, const T* y, T* z, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{blockDim.x} * gridDim.x) {
    z[i] = x[i] * y[i];
  }
}

class Cuda : public ::testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
      cudaGetLastError();
      GTEST_SKIP() << "no CUDA device";
    }
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  void TearDown() override {
    if (stream_ != nullptr) {
      EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
    }
  }
  std::vector<int> Random(int64_t n) {
    std::vector<int> x(n);
    for (int& v : x) v = static_cast<int>(random_() % 1000);
    return x;
  }

  cudaStream_t stream_ = nullptr;
  std::mt19937 random_{std::random_device()()};
};

TEST_F(Cuda, BlocksReduce) {
  for (const int64_t n : {1, 31, 1000, 70001}) {
    const std::vector<int> x = Random(n);
    const Array<int> in(x);
    const Array<long long> out(7);
    ASSERT_OK(MOE_LAUNCH((BlockSums<256>), dim3(7), dim3(256), 0, stream_, in.get(), n, out.get()));
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    const std::vector<long long> sums = out.Read();
    EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), 0LL), std::accumulate(x.begin(), x.end(), 0LL));
  }
}

TEST_F(Cuda, TilesAreTransposed) {
  const int rows = 45, columns = 99;
  std::vector<float> x(rows * columns);
  for (float& v : x) v = static_cast<float>(random_());
  const Array<float> in(x), out(rows * columns);
  ASSERT_OK(MOE_LAUNCH(Transpose, dim3(4, 2), dim3(32, 8), 32 * 33 * sizeof(float), stream_, in.get(),
                       out.get(), rows, columns));
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  const std::vector<float> y = out.Read();
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) ASSERT_EQ(y[c * rows + r], x[r * columns + c]) << r << ", " << c;
  }
}

TEST_F(Cuda, WarpsVote) {
  const std::vector<int> x = Random(128);
  const Array<int> in(x), counts(2), ranks(128), total(std::vector<int>{5});
  const Array<unsigned> ballots(4);
  ASSERT_OK(MOE_LAUNCH(Votes, dim3(2), dim3(64), 0, stream_, in.get(), ballots.get(), counts.get(),
                       ranks.get(), total.get()));
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  std::vector<unsigned> expected_ballots(4);
  std::vector<int> expected_counts(2), expected_ranks(128);
  for (int i = 0; i < 128; ++i) {
    expected_ballots[i / 32] |= static_cast<unsigned>(x[i] % 3 == 0) << (i % 32);
    expected_counts[i / 64] += x[i] % 3 == 0;
    for (int j = i / 32 * 32; j < i; ++j) expected_ranks[i] += x[j] % 4 == x[i] % 4;
  }
  EXPECT_EQ(ballots.Read(), expected_ballots);
  EXPECT_EQ(counts.Read(), expected_counts);
  EXPECT_EQ(ranks.Read(), expected_ranks);
  EXPECT_EQ(total.Read()[0], std::accumulate(x.begin(), x.end(), 5));
}

TEST_F(Cuda, PartsOfAWarpGoTheirOwnWay) {
  const std::vector<int> x = Random(32);
  const Array<int> in(x), out(32);
  ASSERT_OK(MOE_LAUNCH(HalfWarps, dim3(1), dim3(32), 0, stream_, in.get(), out.get()));
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  const int low = 16 * x[3], high = std::accumulate(x.begin() + 16, x.end(), 0);
  const std::vector<int> y = out.Read();
  EXPECT_EQ(y[0], low + high);
  EXPECT_EQ(y[20], high + high);
}

TEST_F(Cuda, NarrowFloatsRoundToEven) {
  const std::vector<__nv_bfloat16> x = {__nv_bfloat16(1.0f + 1.0f / 128), __nv_bfloat16(3.0f)};
  const Array<__nv_bfloat16> a(x), b(x), z(2);
  ASSERT_OK(
      MOE_LAUNCH((Multiply<__nv_bfloat16>), dim3(1), dim3(32), 0, stream_, a.get(), b.get(), z.get(), 2));
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  const std::vector<__nv_bfloat16> squares = z.Read();
  EXPECT_EQ(static_cast<float>(squares[0]), 1.0f + 2.0f / 128);
  EXPECT_EQ(static_cast<float>(squares[1]), 9.0f);
  EXPECT_EQ(static_cast<float>(__float2bfloat16(1.0f + 1.0f / 256)), 1.0f);
  EXPECT_EQ(static_cast<float>(__float2bfloat16(1.0f + 3.0f / 256)), 1.0f + 4.0f / 256);
  EXPECT_EQ(static_cast<float>(__float2half(2049.0f)), 2048.0f);
  EXPECT_EQ(static_cast<float>(__float2half(2051.0f)), 2052.0f);
  EXPECT_EQ(static_cast<float>(__float2half(0x1p-24f)), 0x1p-24f);
  EXPECT_TRUE(std::isinf(static_cast<float>(__float2half(1e6f))));
  EXPECT_TRUE(std::isnan(static_cast<float>(__float2bfloat16(NAN))));
}

TEST_F(Cuda, GraphsRepeatWhatWasCaptured) {
  const Array<int> total(std::vector<int>{0}), in(Random(64)), counts(1), ranks(64);
  const Array<unsigned> ballots(2);
  const std::vector<int> x = in.Read();
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_OK(MOE_LAUNCH(Votes, dim3(1), dim3(64), 0, stream_, in.get(), ballots.get(), counts.get(),
                       ranks.get(), total.get()));
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(total.Read()[0], 3 * std::accumulate(x.begin(), x.end(), 0));
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);

  // What cannot be captured is refused, and the stream works on.
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_NE(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_NE(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  cudaGetLastError();
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
}

TEST_F(Cuda, AnEmptyGridIsNoWork) {
  EXPECT_OK(
      MOE_LAUNCH((BlockSums<256>), cuda::BlocksFor(0, 256), dim3(256), 0, stream_, nullptr, 0, nullptr));
}

TEST_F(Cuda, ImpossibleConfigurationsAreRefused) {
  EXPECT_FALSE(MOE_LAUNCH((BlockSums<256>), dim3(1), dim3(2048), 0, stream_, nullptr, 0, nullptr).ok());
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
}

#ifdef MOE_EMULATED

__global__ void HalfOfTheBlockWaits(int* x) {
  if (threadIdx.x < 32) __syncthreads();
  if (threadIdx.x == 0) *x = 1;
}
__global__ void TwoBarriers(int* x) {
  if (threadIdx.x < 32) {
    __syncthreads();
    *x = 1;
  } else {
    __syncthreads();
  }
}
__global__ void HalfOfTheWarpVotes(int* x) {
  if (threadIdx.x < 16) {
    *x = __any_sync(0xffffffffu, 1);
  } else {
    __syncthreads();
  }
}
__global__ void Stops(int* x) {
  __syncthreads();
  if (threadIdx.x == 7) __trap();
}

TEST_F(Cuda, DivergentBarriersAreReported) {
  const Array<int> x(1);
  for (int repeat = 0; repeat < 2; ++repeat) {
    ExpectError(MOE_LAUNCH(HalfOfTheBlockWaits, dim3(2), dim3(64), 0, stream_, x.get()),
                absl::StatusCode::kInternal, "HalfOfTheBlockWaits, block (0, 0, 0)", "32 of 64 threads",
                "cuda_test.cu:", "32 have ended");
    ExpectError(MOE_LAUNCH(TwoBarriers, dim3(1), dim3(64), 0, stream_, x.get()), absl::StatusCode::kInternal,
                "threads of a block wait at", "and at");
    ExpectError(MOE_LAUNCH(HalfOfTheWarpVotes, dim3(1), dim3(32), 0, stream_, x.get()),
                absl::StatusCode::kInternal, "thread 0 waits at", "lanes of its mask");
    ExpectError(MOE_LAUNCH(Stops, dim3(1), dim3(32), 0, stream_, x.get()), absl::StatusCode::kInternal,
                "trap");
    const std::vector<int> values = Random(500);  // and the next launch is as good as any
    const Array<int> in(values);
    const Array<long long> sum(1);
    ASSERT_OK(MOE_LAUNCH((BlockSums<256>), dim3(1), dim3(256), 0, stream_, in.get(), 500, sum.get()));
    EXPECT_EQ(sum.Read()[0], std::accumulate(values.begin(), values.end(), 0LL));
  }
}

TEST_F(Cuda, SeveralThreadsLaunchAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([] {
      std::mt19937 random(std::random_device{}());
      for (int repeat = 0; repeat < 20; ++repeat) {
        std::vector<int> x(1 + random() % 3000);
        for (int& v : x) v = static_cast<int>(random() % 1000);
        const Array<int> in(x);
        const Array<long long> out(1);
        ASSERT_OK(
            MOE_LAUNCH((BlockSums<512>), dim3(1), dim3(512), 0, nullptr, in.get(), x.size(), out.get()));
        ASSERT_EQ(out.Read()[0], std::accumulate(x.begin(), x.end(), 0LL));
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

TEST_F(Cuda, CopiesBeyondABlockAreRefused) {
  const Array<int> x(100), y(200);
  EXPECT_NE(cudaMemcpyAsync(x.get(), y.get(), 101 * sizeof(int), cudaMemcpyDefault, stream_), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(x.get(), y.get() + 100, 100 * sizeof(int), cudaMemcpyDefault, stream_),
            cudaSuccess);
  cudaGetLastError();
}

#endif

}  // namespace
}  // namespace moe::device
