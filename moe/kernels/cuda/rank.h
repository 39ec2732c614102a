// The rank of each item among the earlier items of its group that have the same key: slots of choices, places
// in lists by key. The same on every run, in order of the items.
//
//   const RankShape s = RanksOf(groups, items, keys);        // workspace: RankWorkspace(s)
//   RETURN_IF_ERROR(LaunchRanks(stream, args, s, counters));
//
// Groups are cut in segments. Keys are counted per segment, the counts summed over segments before it, and
// then a warp goes through each segment, 32 items at a time: lanes with the same key find one another.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "moe/kernels/cuda/context.h"
#include "moe/kernels/cuda/rank_shape.h"

namespace moe::kernels {

struct RankArgs {
  const int32_t* key = nullptr;  // [groups, items]; counted from first_key; others have no rank
  int32_t first_key = 0;
  const int32_t* eligible = nullptr;  // if given, items with a value below 0 have no rank
  int64_t limit = -1;                 // if not below 0, ranks from here on are none
  int32_t* rank = nullptr;            // [groups, items]; -1: none
  int32_t* count = nullptr;           // [groups, keys]: items of a key; may be null
};

absl::Status LaunchRanks(cudaStream_t stream, const RankArgs& args, const RankShape& s, int32_t* counters);

}  // namespace moe::kernels
