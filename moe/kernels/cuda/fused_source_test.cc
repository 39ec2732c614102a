// What NVRTC is given: the text of one chain, that NVRTC takes all of them, and what they compute, on the
// host.
#include "moe/kernels/cuda/fused_source.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status_matchers.h"
#include "moe/device/convert.h"
#include "moe/kernels/cuda/nvrtc.h"

namespace moe::kernels {
namespace {

FusedKernel Chain(const std::vector<std::string>& program, std::vector<FusedOperand> operands, DType result,
                  bool ragged = false) {
  FusedKernel k;
  k.program = *ParseFusedProgram(program, static_cast<int>(operands.size()));
  k.operands = std::move(operands);
  k.result = result;
  k.ragged = ragged;
  return k;
}

TEST(FusedSourceTest, TextOfAChain) {
  const std::string source = FusedSource(Chain({"t0 = mul x0 x1", "t1 = scale t0 0.5", "t2 = silu t1"},
                                               {{DType::kBF16, false}, {DType::kF32, true}}, DType::kBF16));
  EXPECT_EQ(source, R"(// t0 = mul x0 x1
// t1 = scale t0 0.5
// t2 = silu t1

__device__ __forceinline__ float LoadBf16(unsigned short x) { return __int_as_float((int)x << 16); }
__device__ __forceinline__ unsigned short StoreBf16(float x) {
  const unsigned b = (unsigned)__float_as_int(x);
  if ((b & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (unsigned short)((b + 0x7fffu + (b >> 16 & 1u)) >> 16);
}

__device__ __forceinline__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename T>
struct __align__(16) Eight {
  T x[8];
};

__device__ __forceinline__ float Element(float a0, float a1) {
  const float t0 = a0 * a1;
  const float t1 = t0 * 0.5f;
  const float t2 = t1 * Sigmoid(t1);
  return t2;
}

extern "C" __global__ void __launch_bounds__(256) fused(const void* p0, const void* p1, void* y, long long n, int aligned) {
  const unsigned short* const g0 = (const unsigned short*)p0;
  const float s1 = *((const float*)p1);
  unsigned short* const to = (unsigned short*)y;
  for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 8; i < n;
       i += (long long)gridDim.x * blockDim.x * 8) {
    Eight<unsigned short> r;
    Eight<unsigned short> x0;
    if (aligned && i + 8 <= n) {
      x0 = *(const Eight<unsigned short>*)(g0 + i);
#pragma unroll
      for (int j = 0; j < 8; ++j) r.x[j] = StoreBf16(Element(LoadBf16(x0.x[j]), s1));
      *(Eight<unsigned short>*)(to + i) = r;
    } else {
      for (int j = 0; j < 8 && i + j < n; ++j) {
        x0.x[j] = g0[i + j];
        to[i + j] = StoreBf16(Element(LoadBf16(x0.x[j]), s1));
      }
    }
  }
}
)");
}

// Chains of every op, in every dtype, dense and ragged.
std::vector<FusedKernel> AllKinds() {
  const std::vector<std::string> all = {
      "t0 = mul x0 x1",        "t1 = scale t0 -3",     "t2 = silu_grad x0 t1", "t3 = silu t2",
      "t4 = at_least t3 0.25", "t5 = log t4",          "t6 = reciprocal t4",   "t7 = add t5 t6",
      "t8 = mul t7 x2",        "t9 = at_least t8 -inf"};
  std::vector<FusedKernel> kernels;
  constexpr DType kF32 = DType::kF32, kBF16 = DType::kBF16, kF16 = DType::kF16;
  for (const auto& [x, y] : std::vector<std::pair<DType, DType>>{
           {kF32, kF32}, {kF32, kBF16}, {kBF16, kBF16}, {kBF16, kF32}, {kF16, kF16}}) {
    const bool ragged = kernels.size() % 2 > 0;
    kernels.push_back(Chain(all, {{x, false}, {y, false}, {x, true}}, y, ragged));
  }
  for (const bool ragged : {false, true}) {
    kernels.push_back(Chain({"t0 = scale x0 1e-30"}, {{kBF16, false}}, kBF16, ragged));
  }
  return kernels;
}

TEST(FusedSourceTest, NvrtcTakesAllKinds) {
  const absl::StatusOr<const Nvrtc*> nvrtc = Nvrtc::Find();
  if (!nvrtc.ok()) GTEST_SKIP() << nvrtc.status();
  EXPECT_GE((*nvrtc)->major(), 12);
  for (const FusedKernel& k : AllKinds()) {
    const std::string source = FusedSource(k);
    SCOPED_TRACE(source);
    ASSERT_OK_AND_ASSIGN(const std::string cubin, (*nvrtc)->Compile(source, "sm_90"));
    EXPECT_EQ(cubin.substr(0, 4), "\177ELF");
    EXPECT_NE(cubin.find(".text.fused"), std::string::npos);
  }
  ExpectError((*nvrtc)->Compile("no such thing;", "sm_90"), absl::StatusCode::kInvalidArgument, "fused.cu");
}

// What a chain computes, when the host's compiler reads its text with one thread and one block.
constexpr char kOnHost[] = R"(
#include <math.h>
#include <string.h>
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __align__(n) __attribute__((aligned(n)))
struct Index { int x; };
static const Index blockIdx{0}, threadIdx{0}, blockDim{1}, gridDim{1};
static inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
static inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
)";

double Meaning(const FusedProgram& program, const std::vector<double>& x) {
  std::vector<double> t;
  const auto value = [&](int i) { return i >= 0 ? x[i] : t[-1 - i]; };
  const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
  for (const FusedInstruction& in : program) {
    const double a = value(in.a), b = NumFusedOperands(in.op) == 2 ? value(in.b) : 0;
    switch (in.op) {
      case FusedOp::kAdd:
        t.push_back(a + b);
        break;
      case FusedOp::kMul:
        t.push_back(a * b);
        break;
      case FusedOp::kScale:
        t.push_back(a * in.constant);
        break;
      case FusedOp::kSilu:
        t.push_back(a * sigmoid(a));
        break;
      case FusedOp::kSiluGrad:
        t.push_back(b * sigmoid(a) * (1 + a * (1 - sigmoid(a))));
        break;
      case FusedOp::kLog:
        t.push_back(std::log(a));
        break;
      case FusedOp::kReciprocal:
        t.push_back(1 / a);
        break;
      case FusedOp::kAtLeast:
        t.push_back(std::max(a, in.constant));
        break;
    }
  }
  return t.back();
}

TEST(FusedSourceTest, ComputesTheProgram) {
  if (std::system("c++ --version > /dev/null 2>&1") != 0) GTEST_SKIP() << "no compiler of the host";
  const uint64_t seed = std::random_device()();
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal;
  int number = 0;
  for (const FusedKernel& k : AllKinds()) {
    bool f16 = k.result == DType::kF16;  // its conversions are instructions of the device
    for (const FusedOperand& x : k.operands) f16 = f16 || x.dtype == DType::kF16;
    if (f16) continue;
    const std::string source = FusedSource(k), base = absl::StrCat(::testing::TempDir(), "/fused", number++);
    SCOPED_TRACE(::testing::Message() << source << " seed " << seed);
    std::ofstream(base + ".cc") << kOnHost << source;
    ASSERT_EQ(std::system(
                  absl::StrCat("c++ -O1 -fno-strict-aliasing -w -shared -fPIC -o ", base, ".so ", base, ".cc")
                      .c_str()),
              0);
    void* const library = dlopen((base + ".so").c_str(), RTLD_NOW);
    ASSERT_NE(library, nullptr) << dlerror();
    void* const fused = dlsym(library, "fused");
    const int64_t n = 8 * 3 + 5;
    struct alignas(16) Memory {
      char bytes[256];
    };
    std::vector<Memory> memory(k.operands.size() + 1);
    std::vector<std::vector<double>> values(k.operands.size());
    for (size_t i = 0; i < k.operands.size(); ++i) {
      for (int64_t j = 0; j < (k.operands[i].scalar ? 1 : n); ++j) {
        const float x = normal(rng);
        char* const at = memory[i].bytes + j * ByteSize(k.operands[i].dtype);
        device::FromF32(k.operands[i].dtype, &x, at, 1);
        float rounded;
        device::ToF32(k.operands[i].dtype, at, &rounded, 1);
        values[i].push_back(rounded);
      }
    }
    void* const y = memory.back().bytes;
    for (const int aligned : {1, 0}) {
      std::fill_n(memory.back().bytes, sizeof(Memory), '\xff');
      if (k.ragged) {
        struct {
          int64_t rows;
          void* data[4];
        } header = {n, {}};
        int at = 0;
        for (size_t i = 0; i < k.operands.size(); ++i) {
          if (!k.operands[i].scalar) header.data[at++] = memory[i].bytes;
        }
        header.data[at] = y;
        using One = void (*)(const void*, const void*, long long);
        using Three = void (*)(const void*, const void*, const void*, const void*, long long);
        if (k.operands.size() == 1) reinterpret_cast<One>(fused)(nullptr, &header, 1);
        if (k.operands.size() == 3)
          reinterpret_cast<Three>(fused)(nullptr, nullptr, memory[2].bytes, &header, 1);
      } else {
        using One = void (*)(const void*, void*, long long, int);
        using Three = void (*)(const void*, const void*, const void*, void*, long long, int);
        if (k.operands.size() == 1) reinterpret_cast<One>(fused)(memory[0].bytes, y, n, aligned);
        if (k.operands.size() == 3) {
          reinterpret_cast<Three>(fused)(memory[0].bytes, memory[1].bytes, memory[2].bytes, y, n, aligned);
        }
      }
      const int64_t size = ByteSize(k.result);
      for (int64_t j = 0; j < n; ++j) {
        std::vector<double> x;
        for (size_t i = 0; i < values.size(); ++i) x.push_back(values[i][k.operands[i].scalar ? 0 : j]);
        const double want = Meaning(k.program, x);
        float got;
        device::ToF32(k.result, static_cast<char*>(y) + j * size, &got, 1);
        EXPECT_NEAR(got, want, std::abs(want) * (k.result == DType::kF32 ? 1e-4 : 1e-2) + 1e-5) << j;
      }
      for (int64_t j = n * size; j < static_cast<int64_t>(sizeof(Memory)); ++j) {
        EXPECT_EQ(memory.back().bytes[j], '\xff') << "written beyond the end";
      }
    }
    dlclose(library);
  }
}

}  // namespace
}  // namespace moe::kernels
