// bench: what a GPU does with the parts of a step, beside what it can (bench_ops.h). See --help, docs/gpu.md.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "tools/gpu/bench_ops.h"

ABSL_FLAG(std::string, device, "cuda", "cuda, or cpu to see that it works.");
ABSL_FLAG(int, ordinal, 0, "Which device.");
ABSL_FLAG(std::string, dtype, "bf16", "bf16, f16 or f32.");
ABSL_FLAG(std::vector<std::string>, only, {},
          "Of ceilings, ops and layers; empty: all. Ceilings are always found.");
ABSL_FLAG(std::vector<std::string>, tokens, {}, "Tokens of a layer; empty: 8192, 16384 and 32768.");
ABSL_FLAG(int, repeats, 20, "Runs, of which the median is taken.");
ABSL_FLAG(bool, tiny, false, "Everything as small as it can be.");
ABSL_FLAG(std::string, json, "", "File to which a JSON line for each row is added.");

namespace moe::tools {
namespace {

absl::Status Run() {
  ASSIGN_OR_RETURN(const device::DeviceKind kind, device::ParseDeviceKind(absl::GetFlag(FLAGS_device)));
  ASSIGN_OR_RETURN(const std::unique_ptr<device::Device> device,
                   device::OpenDevice(kind, absl::GetFlag(FLAGS_ordinal)));
  GpuBench bench;
  bench.device = device.get();
  bench.backend = kind == device::DeviceKind::kCuda ? kernels::Backend::kCuda : kernels::Backend::kCpu;
  const std::string dtype = absl::GetFlag(FLAGS_dtype);
  if (dtype != "bf16" && dtype != "f16" && dtype != "f32") {
    return absl::InvalidArgumentError(absl::StrCat("--dtype=", dtype, ": bf16, f16 or f32"));
  }
  bench.dtype = dtype == "bf16" ? DType::kBF16 : dtype == "f16" ? DType::kF16 : DType::kF32;
  if (absl::GetFlag(FLAGS_tiny)) bench.sizes = GpuBenchSizes::Tiny();
  if (!absl::GetFlag(FLAGS_tiny)) bench.sizes.repeats = absl::GetFlag(FLAGS_repeats);
  if (bench.sizes.repeats < 1) return absl::InvalidArgumentError("--repeats is below 1");
  if (const auto tokens = absl::GetFlag(FLAGS_tokens); !tokens.empty()) {
    bench.sizes.tokens.clear();
    for (const std::string& t : tokens) {
      int64_t n = 0;
      if (!absl::SimpleAtoi(t, &n) || n < 1 || (n > 4096 && n % 4096 != 0)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "--tokens=", t, ": at most 4096, or a multiple of it, the length of a routing group"));
      }
      bench.sizes.tokens.push_back(n);
    }
  }
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    bench.json = std::fopen(path.c_str(), "a");
    if (bench.json == nullptr) return absl::InvalidArgumentError(absl::StrCat("cannot write ", path));
  }
  const std::vector<std::string> only = absl::GetFlag(FLAGS_only);
  const auto wanted = [&](const char* part) {
    return only.empty() || std::find(only.begin(), only.end(), part) != only.end();
  };
  for (const std::string& part : only) {
    if (part != "ceilings" && part != "ops" && part != "layers") {
      return absl::InvalidArgumentError(absl::StrCat("--only=", part, ": of ceilings, ops and layers"));
    }
  }
  std::printf("device: %s\n", device->description().c_str());
  RETURN_IF_ERROR(BenchCeilings(bench));
  if (wanted("ops")) RETURN_IF_ERROR(BenchOps(bench));
  if (wanted("layers")) RETURN_IF_ERROR(BenchMoeLayers(bench));
  if (bench.json != nullptr) std::fclose(bench.json);
  return absl::OkStatus();
}

}  // namespace
}  // namespace moe::tools

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "Times of matrix products, attention, dispatch, the optimizer and whole MoE layers on one GPU.\n"
      "  bench --json=out.jsonl\n  bench --only=layers --tokens=8192");
  absl::ParseCommandLine(argc, argv);
  const absl::Status status = moe::tools::Run();
  if (status.ok()) return 0;
  std::cerr << "error: " << status.message() << std::endl;
  return 1;
}
