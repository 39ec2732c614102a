// What a GPU does with the parts of a step, beside what it can: one table per function, a JSON line per row.
//
//   GpuBench bench{device, Backend::kCuda, GpuBenchSizes(), json};
//   RETURN_IF_ERROR(BenchCeilings(bench));      // first: the others show shares of what it finds
//   RETURN_IF_ERROR(BenchOps(bench));
//   RETURN_IF_ERROR(BenchMoeLayers(bench));
//
// Times are medians by the device's events. Multiply-adds count two. With T tokens, K choices of each, E
// experts, hidden H, expert width F, element size s (2 in bf16):
//
//   copy             2 bytes moved per byte copied
//   GEMM             2 M N K flops
//   grouped GEMM     2 T K H F flops for each of gate, up and down; as many for dx and for dw of each
//   MoE layer        18 T K H F flops of its experts + 6 T H E of its router, forward and backward
//   dispatch         (T + T K) H s bytes: each token is read, each choice is written; its gradient the same
//   combine          (T K + T) H s bytes; d(output) the same, d(probability) the same
//   swiglu           3 T K F s bytes; its gradient 5 T K F s
//   attention        2 B N S^2 D flops, causal; its gradient 2.5 times that (Dao 2023, section 3)
//   cross-entropy    2 T H V flops; its gradient 4 T H V (computing the logits again is not counted)
//   AdamW            28 bytes per parameter in f32: p, g, m, v read, p, m, v written
//
// Routing regimes: "uniform" (random tokens and router weights), "skewed" (the first quarter of the experts
// has router weights 4 times as large). All are dropless. The load that came of it stands beside: the largest
// expert's choices over the mean.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "moe/device/device.h"
#include "moe/kernels/kernel.h"

namespace moe::tools {

struct MoeLayerShape {
  std::string name;
  int64_t hidden, ffn, experts, top_k;
};

struct GpuBenchSizes {
  int64_t copy_bytes = int64_t{1} << 30;
  std::vector<int64_t> gemm = {4096, 8192};  // square
  int64_t batch = 4, sequence = 4096, heads = 32, kv_heads = 8, head_dim = 128;
  int64_t hidden = 4096, vocab = 32768, vocab_blocks = 8;
  int64_t parameters = 256 << 20;
  std::vector<MoeLayerShape> layers = {{"mixtral-like", 4096, 14336, 8, 2},
                                       {"fine-grained 64", 2048, 1408, 64, 8},
                                       {"fine-grained 128", 2048, 768, 128, 8}};
  std::vector<int64_t> tokens = {8192, 16384, 32768};
  int warm_up = 3, repeats = 20;
  // Everything as small as it can be, to see that it works.
  static GpuBenchSizes Tiny();
};

struct GpuBench {
  device::Device* device = nullptr;
  kernels::Backend backend = kernels::Backend::kCuda;
  DType dtype = DType::kBF16;
  GpuBenchSizes sizes;
  std::FILE* json = nullptr;
  // Found by BenchCeilings.
  double copy_bytes_per_second = 0, gemm_flops_per_second = 0;
};

absl::Status BenchCeilings(GpuBench& bench);
absl::Status BenchOps(const GpuBench& bench);
// A layer that does not fit the device is left out with a line that says so.
absl::Status BenchMoeLayers(const GpuBench& bench);

}  // namespace moe::tools
