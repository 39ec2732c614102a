// The benchmarks at the smallest sizes, on the host and on whatever device of CUDA there is: that they run,
// and that a row says what it should.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>

#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "moe/device/cuda/cuda.h"
#include "tools/gpu/bench_ops.h"

namespace moe::tools {
namespace {

using ::testing::HasSubstr;

void RunAll(device::DeviceKind kind, kernels::Backend backend, DType dtype) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<device::Device> device, device::OpenDevice(kind, 0));
  const std::string path = ::testing::TempDir() + "/bench.jsonl";
  std::FILE* const json = std::fopen(path.c_str(), "w");
  ASSERT_NE(json, nullptr);
  GpuBench bench;
  bench.device = device.get();
  bench.backend = backend;
  bench.dtype = dtype;
  bench.sizes = GpuBenchSizes::Tiny();
  bench.json = json;
  EXPECT_OK(BenchCeilings(bench));
  EXPECT_GT(bench.copy_bytes_per_second, 0);
  EXPECT_GT(bench.gemm_flops_per_second, 0);
  EXPECT_OK(BenchOps(bench));
  EXPECT_OK(BenchMoeLayers(bench));
  std::fclose(json);
  ASSERT_OK_AND_ASSIGN(const std::string text, ReadFile(path));
  for (const char* row : {"\"what\":\"copy\"", "\"op\":\"attention gradient\"", "\"op\":\"cross-entropy\"",
                          "\"op\":\"AdamW\"", "\"op\":\"dispatch\"", "\"op\":\"gate dw\"",
                          "\"layer\":\"mixtral-like\",\"tokens\":40,\"routing\":\"skewed\""}) {
    EXPECT_THAT(text, HasSubstr(row));
  }
}

#ifdef MOE_EMULATED
TEST(GpuBench, RunsOnTheHost) { RunAll(device::DeviceKind::kHost, kernels::Backend::kCpu, DType::kF32); }
#endif

TEST(GpuBench, RunsOnCuda) {
  if (device::CountDevices(device::DeviceKind::kCuda) == 0) {
    GTEST_SKIP() << device::OpenDevice(device::DeviceKind::kCuda, 0).status().message();
  }
  RunAll(device::DeviceKind::kCuda, kernels::Backend::kCuda, DType::kBF16);
  RunAll(device::DeviceKind::kCuda, kernels::Backend::kCuda, DType::kF32);
}

#ifdef MOE_EMULATED
TEST(GpuBench, ALayerThatDoesNotFitIsLeftOut) {
  emulated::SetDevices(1, 1 << 20);
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<device::Device> device,
                       device::OpenDevice(device::DeviceKind::kCuda, 0));
  GpuBench bench;
  bench.device = device.get();
  bench.sizes = GpuBenchSizes::Tiny();
  bench.sizes.layers = {{"large", 512, 512, 8, 2}};
  ::testing::internal::CaptureStdout();
  EXPECT_OK(BenchMoeLayers(bench));
  EXPECT_THAT(::testing::internal::GetCapturedStdout(), HasSubstr("left out: "));
}
#endif

}  // namespace
}  // namespace moe::tools
