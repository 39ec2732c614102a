// Strategy: how a model is spread over ranks, in the field's words; and the mesh that follows from it.
//
// Attention factors the ranks of a stage as dp x cp x tp, experts as edp x ep x etp, both over common atomic
// axes (folding). Sizes are degrees, not counts of things.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "moe/ir/types.h"

namespace moe {

struct Strategy {
  int64_t pp = 1, dp = 1, cp = 1, tp = 1;  // world = pp x dp x cp x tp
  int64_t ep = 1, etp = 1;                 // edp = dp x cp x tp / (ep x etp)
  bool sequence_parallel = false;
  bool vocab_parallel = false;      // embedding and head sharded over tp by vocabulary
  int zero = 0;                     // dense parameters: 0, 1, 2, 3
  int expert_zero = -1;             // expert parameters; -1: as `zero`
  int64_t microbatches = 1;         // per step; batch of one = global_batch / microbatches
  std::string schedule = "1f1b";    // gpipe, 1f1b, interleaved, zb-h1, zb-v, dualpipe, or file:PATH
  int64_t virtual_chunks = 1;       // chunks per stage
  std::string checkpoint = "none";  // none, selective, full
  double overload = 0;              // ragged arena bound: overload x expected rows; 0: worst case
  // Order of atomic axes on a dim: "" (the fold's order) or "reversed". The shard pass tries both for ep when
  // empty.
  std::string ep_order;
  bool kv_axis = true;  // split tp by kv heads where tp exceeds them

  int64_t world() const { return pp * dp * cp * tp; }
  int64_t edp() const { return dp * cp * tp / (ep * etp); }
  int expert_zero_stage() const { return expert_zero < 0 ? zero : expert_zero; }
  std::string ToString() const;  // "pp=2 dp=2 tp=2 ep=2 etp=2 zero=1 sp ..."
};
absl::StatusOr<Strategy> ParseStrategy(
    absl::string_view text);  // inverse of ToString; words separated by spaces or commas

// Atomic axes by folding: cut points {1, tp, tp*cp, tp*cp*dp} and {1, etp, etp*ep, etp*ep*edp}, and
// tp/gcd(tp, kv_heads), must form a divisibility chain. kv_heads = 0: no attention. Error: which cut points
// clash, and the nearest legal sizes. Axes get names of one letter, minor first ('a' is the innermost); "pp"
// is prepended when pp > 1. Aliases: dp cp tp ep etp edp kvh.
// `alongside`: strategies whose plans share state with this one; the axes are then fine enough for all of
// them, so that a placement means the same in every plan. Their worlds and stages must be those of `s`.
absl::StatusOr<Mesh> FoldMesh(const Strategy& s, int64_t kv_heads, absl::Span<const Strategy> alongside = {});
// What keeps the degrees from folding, without the search for the nearest legal ones; "" if they fold.
std::string FoldProblem(const Strategy& s, int64_t kv_heads);

}  // namespace moe
