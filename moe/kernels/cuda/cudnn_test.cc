// cuDNN's attention: the library as it is found, the pieces of the backward, and, where there is a cuDNN,
// that it makes plans for these graphs. That needs no GPU: a device can be described, and the driver stood in
// for.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "moe/base/status_matchers.h"
#include "moe/device/cuda/cuda.h"
#include "moe/kernels/cuda/cudnn_attention.h"

namespace moe::kernels {
namespace {

TEST(CudnnApi, SaysWhatIsMissing) {
  const char* const nowhere[] = {"libcudnn_of_nowhere.so.9"};
  ExpectError(LoadCudnnFrom(nowhere), absl::StatusCode::kUnavailable, "libcudnn_of_nowhere.so.9",
              "add the folder of libcudnn.so.9 to LD_LIBRARY_PATH");
  const char* const another[] = {"libc.so.6"};
  ExpectError(LoadCudnnFrom(another), absl::StatusCode::kFailedPrecondition,
              "libc.so.6 lacks cudnnGetVersion");
  EXPECT_OK(CheckCudnnVersion(91900, "x"));
  ExpectError(CheckCudnnVersion(90100, "x"), absl::StatusCode::kFailedPrecondition,
              "x is cuDNN 9.1.0; 9.19.0 or newer is needed");
  ExpectError(CheckCudnnVersion(8907, "x"), absl::StatusCode::kFailedPrecondition, "cuDNN 8.9.7");
}

TEST(CudnnAttention, TakesWhatItsKernelsDo) {
  CudnnAttention a = {.batch = 1, .s = 5, .kv_heads = 1, .d = 264};
  ExpectError(CheckCudnnAttention(a), absl::StatusCode::kUnimplemented, "heads of 264", "8 up to 256");
  a.d = 12;
  ExpectError(CheckCudnnAttention(a), absl::StatusCode::kUnimplemented, "heads of 12");
  a.d = 16;
  EXPECT_OK(CheckCudnnAttention(a));
  a.dtype = DType::kF32;
  ExpectError(CheckCudnnAttention(a), absl::StatusCode::kUnimplemented, "in f32; it takes bf16 and f16");
}

// A matrix of 4096 x 4096 in bf16 is 32 MiB; beside it lie gradients of the keys and values of each head.
TEST(CudnnAttention, PiecesBoundTheWorkspace) {
  const CudnnAttention small = {.batch = 4, .s = 512, .kv_heads = 2, .per_kv = 4, .d = 128};
  EXPECT_EQ(CudnnPieceOf(small).batch, 4);
  EXPECT_EQ(CudnnPieceOf(small).kv_heads, 2);
  const CudnnAttention alone = {.batch = 4, .s = 4096, .kv_heads = 8, .per_kv = 1, .d = 128};
  EXPECT_EQ(CudnnPieceOf(alone).batch, 1);
  EXPECT_EQ(CudnnPieceOf(alone).kv_heads, 2);  // three would fit, but do not divide eight
  EXPECT_LT(CudnnBackwardWorkspace(alone), alone.piece_bytes);
  const CudnnAttention shared = {.batch = 4, .s = 4096, .kv_heads = 8, .per_kv = 8, .d = 128};
  EXPECT_EQ(CudnnPieceOf(shared).kv_heads, 1);
  EXPECT_EQ(CudnnBackwardWorkspace(shared), 8 * (4096 * 4096 * 2 + 2 * 4096 * 128 * 2 + 4096 * 4) + 256);
}

// ---- with a device, or the emulated one

class Memory {
 public:
  explicit Memory(int64_t elements, uint64_t seed) {
    std::mt19937_64 rng(seed);
    std::normal_distribution<float> normal;
    std::vector<uint16_t> host(elements);
    for (uint16_t& x : host) {  // bf16 by cutting
      const float f = normal(rng);
      uint32_t bits;
      std::memcpy(&bits, &f, sizeof(bits));
      x = static_cast<uint16_t>(bits >> 16);
    }
    size_ = elements * 2;
    EXPECT_EQ(cudaMalloc(&data_, size_), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, host.data(), size_, cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~Memory() { cudaFree(data_); }
  void* data() const { return data_; }
  std::string Bytes() const {
    std::string host(size_, '\0');
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(host.data(), data_, size_, cudaMemcpyDeviceToHost), cudaSuccess);
    return host;
  }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

TEST(CudnnAttention, PiecesGiveTheSameBits) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no device";
  if (const auto cudnn = LoadCudnn(); !cudnn.ok()) GTEST_SKIP() << cudnn.status();
  CudnnAttention a = {.batch = 2, .s = 70, .kv_heads = 4, .per_kv = 2, .d = 16};
  const int64_t queries = a.batch * a.s * a.heads() * a.d, keys = a.batch * a.s * a.kv_heads * a.d;
  const Memory q(queries, 1), k(keys, 2), v(keys, 3), o(queries, 4), dy(queries, 5),
      lse(a.batch * a.s * a.heads() * 2, 6);
  std::vector<std::string> results;
  for (const int64_t piece : {int64_t{128} << 20, int64_t{600} << 10, int64_t{200} << 10, int64_t{1}}) {
    a.piece_bytes = piece;
    const Memory dq(queries, 7), dk(keys, 8), dv(keys, 9), workspace(CudnnBackwardWorkspace(a), 10);
    ASSERT_OK(RunCudnnAttentionGrad(
        a, {q.data(), k.data(), v.data(), o.data(), lse.data(), dy.data(), dq.data(), dk.data(), dv.data()},
        workspace.data(), /*stream=*/nullptr));
    results.push_back(dq.Bytes() + dk.Bytes() + dv.Bytes());
    EXPECT_TRUE(results.back() == results[0])
        << "pieces of " << CudnnPieceOf(a).batch << " samples, " << CudnnPieceOf(a).kv_heads << " heads";
  }
}

#ifndef MOE_EMULATED

// ---- the library itself, without a device

// An H100's properties, as cuDNN writes them.
constexpr char kH100[] = R"({"maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
 "regsPerBlock": 65536, "multiProcessorCount": 132, "warpSize": 32, "maxSharedMemoryPerBlock": 49152,
 "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536,
 "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0,
 "supportCoopLaunch": 1, "totalGlobalMem": 85520809984, "smClockRateKHz": 1980000, "memClockRateKHz": 2619000,
 "l2CacheSize": 52428800, "cudaDeviceId": 0, "deviceVer": 900, "driverVer": 13000,
 "deviceName": "NVIDIA H100 80GB HBM3"})";

TEST(CudnnPlans, AreMadeForHopper) {
  if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) == nullptr &&
      dlopen("moe/kernels/cuda/libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    GTEST_SKIP() << "neither a driver nor its stand-in: " << dlerror();
  }
  const absl::StatusOr<const CudnnApi*> loaded = LoadCudnn();
  if (!loaded.ok()) GTEST_SKIP() << loaded.status();
  const CudnnApi& cudnn = **loaded;
  RecordProperty("cudnn", CudnnVersionName(cudnn.version));
  ASSERT_OK_AND_ASSIGN(CudnnDescriptor h100,
                       CudnnDescriptor::Create(&cudnn, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR));
  ASSERT_OK(h100.Set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, sizeof(kH100), kH100));
  ASSERT_OK(h100.Finalize());
  const CudnnDevice device = {.properties = h100.get()};
  for (const CudnnAttention& a :
       {CudnnAttention{.batch = 2, .s = 1024, .kv_heads = 2, .per_kv = 4, .d = 128},
        {.batch = 1, .s = 4096, .kv_heads = 8, .per_kv = 1, .d = 128},
        {.batch = 3, .s = 1000, .kv_heads = 2, .per_kv = 3, .d = 64, .dtype = DType::kF16},
        {.batch = 2, .s = 70, .kv_heads = 1, .per_kv = 2, .d = 256}}) {
    SCOPED_TRACE(::testing::Message() << DTypeName(a.dtype) << " batch " << a.batch << " s " << a.s
                                      << " heads " << a.kv_heads << " x " << a.per_kv << " d " << a.d);
    // Each within the workspace that the memory plan has for it.
    EXPECT_OK(CudnnForwardPlan(&cudnn, a, device).status());
    EXPECT_OK(CudnnBackwardPlan(&cudnn, a, device).status());
  }
}

#endif

}  // namespace
}  // namespace moe::kernels
