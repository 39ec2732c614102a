#include <algorithm>

#include "moe/kernels/cuda/block_reduce.h"
#include "moe/kernels/cuda/rank.h"

namespace moe::kernels {
namespace {

// The key of an item; -1 if it has no rank.
__device__ int64_t KeyOf(const RankArgs& a, const RankShape& s, int64_t item) {
  const int64_t key = int64_t{a.key[item]} - a.first_key;
  const bool counts = key >= 0 && key < s.keys && (a.eligible == nullptr || a.eligible[item] >= 0);
  return counts ? key : -1;
}

__global__ void CountKernel(RankArgs a, RankShape s, int32_t* counters) {
  for (int64_t i = FirstItem(); i < s.groups * s.items; i += ItemStep()) {
    const int64_t key = KeyOf(a, s, i);
    if (key < 0) continue;
    const int64_t group = i / s.items, segment = (i - group * s.items) / s.segment;
    atomicAdd(counters + (group * s.segments + segment) * s.keys + key, 1);
  }
}

// Counts of each segment become sums of those before it.
__global__ void SumSegmentsKernel(RankShape s, int32_t* counters, int32_t* count) {
  for (int64_t i = FirstItem(); i < s.groups * s.keys; i += ItemStep()) {
    const int64_t group = i / s.keys, key = i - group * s.keys;
    int32_t sum = 0;
    for (int64_t j = 0; j < s.segments; ++j) {
      int32_t& counter = counters[(group * s.segments + j) * s.keys + key];
      const int32_t mine = counter;
      counter = sum;
      sum += mine;
    }
    if (count != nullptr) count[i] = sum;
  }
}

// A warp a segment. Each lane's items wait for those of lower lanes and earlier rounds.
__global__ void RankKernel(RankArgs a, RankShape s, int32_t* counters) {
  const int lane = threadIdx.x;
  for (int64_t i = FirstRow(); i < s.groups * s.segments; i += RowStep()) {
    const int64_t group = i / s.segments, begin = (i - group * s.segments) * s.segment;
    const int64_t end = begin + s.segment < s.items ? begin + s.segment : s.items;
    int32_t* const before = counters + i * s.keys;
    for (int64_t first = begin; first < end; first += kWarp) {
      const int64_t item = group * s.items + first + lane;
      const int64_t key = first + lane < end ? KeyOf(a, s, item) : -1;
      const unsigned same = __match_any_sync(kAllLanes, static_cast<int>(key));
      const int32_t rank = key >= 0 ? before[key] + __popc(same & ((1u << lane) - 1)) : -1;
      __syncwarp();
      if (key >= 0 && (same >> lane) == 1) before[key] = rank + 1;  // the last lane of its key
      __syncwarp();
      if (first + lane < end) a.rank[item] = a.limit >= 0 && rank >= a.limit ? -1 : rank;
    }
  }
}

}  // namespace

absl::Status LaunchRanks(cudaStream_t stream, const RankArgs& args, const RankShape& s, int32_t* counters) {
  RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(counters, 0, s.groups * s.segments * s.keys * sizeof(int32_t), stream));
  LaunchShape l = FlatLaunch(s.groups * s.items);
  RETURN_IF_ERROR(MOE_LAUNCH(CountKernel, GridOf(l), BlockOf(l), 0, stream, args, s, counters));
  l = FlatLaunch(s.groups * s.keys);
  RETURN_IF_ERROR(MOE_LAUNCH(SumSegmentsKernel, GridOf(l), BlockOf(l), 0, stream, s, counters, args.count));
  l = RowLaunch(s.groups * s.segments, kWarp);
  return MOE_LAUNCH(RankKernel, GridOf(l), BlockOf(l), 0, stream, args, s, counters);
}

}  // namespace moe::kernels
