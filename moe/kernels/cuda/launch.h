// Launch shapes: grid and block of a kernel from the extents of its work. Host code without CUDA, so that it
// is tested everywhere.
//
//   const LaunchShape s = RowLaunch(tokens, hidden);
//   MOE_LAUNCH(kernel, GridOf(s), BlockOf(s), 0, stream, ...);
//
// Kernels stride by the grid, so that every shape is correct for any extent, 0 among them; a grid is capped
// where more blocks would no longer help. Limits of all devices since sm_50: 1024 threads a block, 2^31 - 1
// blocks along x, 48 KiB of shared memory without opting in.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moe::kernels {

inline constexpr int kWarp = 32;
inline constexpr int kMaxThreads = 1024;
inline constexpr int64_t kMaxGridY = 65535;              // also along z
inline constexpr int64_t kMaxBlocks = int64_t{1} << 20;  // of a grid that strides
inline constexpr int64_t kDefaultSharedBytes = 48 * 1024;
// Elements that a thread takes at once: 16 bytes of bf16 or f16, 32 of f32.
inline constexpr int kChunk = 8;

struct LaunchShape {
  int64_t blocks = 1;
  int threads_x = kWarp, threads_y = 1;
};

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUpTo(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// Bytes of a part of a workspace, whose next part is aligned.
constexpr int64_t WorkspacePart(int64_t bytes) { return RoundUpTo(bytes, 64); }

// One thread an item.
inline LaunchShape FlatLaunch(int64_t items, int threads = 256) {
  LaunchShape s;
  s.threads_x = static_cast<int>(std::clamp<int64_t>(RoundUpTo(items, kWarp), kWarp, threads));
  s.blocks = std::clamp<int64_t>(CeilDiv(items, s.threads_x), 1, kMaxBlocks);
  return s;
}

// Threads along x share a row of `items` items: one warp, and then several rows a block along y; or a block
// whose warps have 4 items a thread, as far as a block goes.
inline LaunchShape RowLaunch(int64_t rows, int64_t items) {
  LaunchShape s;
  s.threads_x =
      static_cast<int>(std::clamp<int64_t>(RoundUpTo(CeilDiv(items, 4), kWarp), kWarp, kMaxThreads));
  if (s.threads_x == kWarp) s.threads_y = static_cast<int>(std::clamp<int64_t>(rows, 1, 8));
  s.blocks = std::clamp<int64_t>(CeilDiv(rows, s.threads_y), 1, kMaxBlocks);
  return s;
}

// For kernels that walk rows in chunks.
inline LaunchShape ChunkRowLaunch(int64_t rows, int64_t width) {
  return RowLaunch(rows, CeilDiv(width, kChunk));
}

}  // namespace moe::kernels
