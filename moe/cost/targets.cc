#include "moe/cost/targets.h"

#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace moe::cost {
namespace {

// NCCL's own estimates of a message by its ring algorithm with 128-byte flags (src/graph/tuning.cc, hwLat):
// 1.9 us over NVLink, 4 us over the network.
constexpr double kNvlinkSeconds = 1.9e-6, kNetworkSeconds = 4e-6;

// Messages of some tens of MB reach the bandwidth of both kinds of link at these latencies.
constexpr int64_t kBucketBytes = int64_t{32} << 20;

Target Gpu(const char* name, double flops, double f8_flops, double memory, double nvlink, double network) {
  Target t;
  t.name = name;
  t.device = "cuda";
  t.flops = flops;
  t.f8_flops = f8_flops;
  t.bytes_per_second = memory;
  t.link_bytes_per_second = nvlink;
  t.link_latency_seconds = kNvlinkSeconds;
  t.node_bytes_per_second = network;
  t.node_latency_seconds = kNetworkSeconds;
  t.bucket_bytes = kBucketBytes;
  t.overlaps = true;
  return t;
}

std::vector<Target> Targets() {
  return {
      Target(),
      // A100 80GB SXM data sheet (2021): bf16 312 TFLOP/s, no fp8, 2,039 GB/s, NVLink 600 GB/s both ways. DGX
      // A100: a 200 Gbit/s adapter for each GPU.
      Gpu("a100", 312e12, 0, 2039e9, 300e9, 25e9),
      // H100 SXM data sheet (2023): bf16 1,979 and fp8 3,958 TFLOP/s with sparsity, half of it dense; 3.35
      // TB/s; NVLink 900 GB/s both ways. DGX H100: a 400 Gbit/s adapter for each GPU.
      Gpu("h100", 989.5e12, 1979e12, 3.35e12, 450e9, 50e9),
      // H200 SXM data sheet (2024): the H100's arithmetic and links, 4.8 TB/s.
      Gpu("h200", 989.5e12, 1979e12, 4.8e12, 450e9, 50e9),
  };
}

}  // namespace

absl::StatusOr<Target> NamedTarget(absl::string_view name) {
  for (Target& t : Targets()) {
    if (t.name == name) return t;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown target '", name, "'; there are ", absl::StrJoin(TargetNames(), ", ")));
}

absl::StatusOr<Target> TargetOfDevice(absl::string_view device) {
  // All variants of the A100 have the same arithmetic.
  if (absl::StartsWith(device, "NVIDIA A100")) return NamedTarget("a100");
  if (device == "NVIDIA H100 80GB HBM3") return NamedTarget("h100");
  if (device == "NVIDIA H200") return NamedTarget("h200");
  return absl::NotFoundError(absl::StrCat("no target stands for a device called '", device, "'"));
}

std::vector<std::string> TargetNames() {
  std::vector<std::string> names;
  for (const Target& t : Targets()) names.push_back(t.name);
  return names;
}

}  // namespace moe::cost
