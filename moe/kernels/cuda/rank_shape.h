// How the items of LaunchRanks (rank.h) are cut. Host code without CUDA.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moe/kernels/cuda/launch.h"

namespace moe::kernels {

struct RankShape {
  int64_t groups = 0, items = 0, keys = 0;  // items: of a group
  int64_t segment = 0, segments = 0;        // items of a segment, segments of a group
};

inline constexpr int64_t kMaxCounters = int64_t{4} << 20;  // 16 MiB, unless a group has more keys

// Segments are short, for many warps, as far as there may be counters.
inline RankShape RanksOf(int64_t groups, int64_t items, int64_t keys) {
  RankShape s = {groups, items, keys, 512, 0};
  while (groups * CeilDiv(items, s.segment) * keys > kMaxCounters && s.segment < items) s.segment *= 2;
  s.segments = std::max<int64_t>(1, CeilDiv(items, s.segment));
  return s;
}
inline int64_t RankWorkspace(const RankShape& s) {
  return WorkspacePart(s.groups * s.segments * s.keys * static_cast<int64_t>(sizeof(int32_t)));
}

}  // namespace moe::kernels
