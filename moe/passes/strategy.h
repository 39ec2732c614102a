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

namespace moe::passes {

struct Strategy {
  int64_t pp = 1, dp = 1, cp = 1, tp = 1;  // world = pp x dp x cp x tp
  int64_t ep = 1, etp = 1;                 // edp = dp x cp x tp / (ep x etp)
  bool sequence_parallel = false;
  bool vocab_parallel = false;  // embedding and head sharded over tp by vocabulary
  int zero = 0;                 // dense parameters: 0, 1, 2, 3
  int expert_zero = -1;         // expert parameters; -1: as `zero`
  // Ranks, the innermost of the data ranks, over which ZeRO shards one copy of the state (hybrid sharding):
  // dense over dp x cp, experts over edp. The copies are kept equal by reducing gradients across. 0: all data
  // ranks.
  int64_t zero_dp = 0, expert_zero_dp = 0;
  int64_t microbatches = 1;         // per step; batch of one = global_batch / microbatches
  std::string schedule = "1f1b";    // gpipe, 1f1b, interleaved, zb-h1, zb-v, dualpipe, or file:PATH
  int64_t virtual_chunks = 1;       // chunks per stage
  std::string checkpoint = "none";  // none, selective, full, auto, or ops: checkpoint_policy.h
  // checkpoint=auto: bytes that the residuals of a rank may take; 0: what memory_limit leaves.
  int64_t checkpoint_budget = 0;
  int64_t memory_limit = 0;  // bytes of a rank, which the plan must fit; 0: none
  // How tokens that are sharded over a part of ep reach its experts: exchanged (alltoall), gathered and their
  // results reduced (allgather), or whatever moves fewer bytes (auto).
  std::string dispatcher = "auto";
  std::string precision;     // "": as the model; bf16, f16: compute in it, with f32 masters
  std::string grads;         // "": gradients are summed in f32; the same word as `precision`: in that
  bool fp8_experts = false;  // with bf16: products of experts in e4m3 with a scale per 128 values
  // Wire formats of exchanges: "" (as computed), "bf16" or "f8" (e4m3 with an f32 scale per 128 values).
  std::string compress_dispatch, compress_combine, compress_gather, compress_grad;
  double overload = 0;  // ragged arena bound: overload x expected rows; 0: worst case
  // Order of atomic axes on a dim: "" (the fold's order) or "reversed". The shard pass tries both for ep when
  // empty.
  std::string ep_order;
  // Slots that experts are stored in, a multiple of ep; 0: as many as experts. And what each holds, an expert
  // or -1 for nothing; empty: the experts in order, spread evenly.
  int64_t expert_slots = 0;
  std::vector<int64_t> expert_map;
  std::string cp_attention =
      "auto";  // gather, ring: how attention meets the keys of other cp ranks; auto: by cost
  std::string cp_order = "auto";      // contiguous, zigzag: which part of the sequence a cp rank has
  int64_t devices_per_node = 0;       // consecutive ranks that share a node; 0: all
  std::string hierarchical = "auto";  // on, off: collectives across nodes in two levels; auto: by cost
  int64_t bucket = -1;     // bytes of collectives that travel together; 0: none; -1: as the target likes
  std::string overlap;     // "on", "off": communication beside compute; "": as the target likes
  int64_t moe_chunks = 1;  // parts in which experts are exchanged and computed
  bool kv_axis = true;     // split tp by kv heads where tp exceeds them

  int64_t world() const { return pp * dp * cp * tp; }
  int64_t edp() const { return dp * cp * tp / (ep * etp); }
  int expert_zero_stage() const { return expert_zero < 0 ? zero : expert_zero; }
  std::string ToString() const;  // "pp=2 dp=2 tp=2 ep=2 etp=2 zero=1 sp ..."
};
// "1048576", "512KiB", "38.5MiB", "80GiB".
absl::StatusOr<int64_t> ParseByteSize(absl::string_view text);
std::string ByteSizeToString(int64_t bytes);  // its inverse, in the largest unit that is exact
absl::StatusOr<Strategy> ParseStrategy(
    absl::string_view text);  // inverse of ToString; words separated by spaces or commas

// "0,1,2,-1", with commas or colons, as numbers.
absl::StatusOr<std::vector<int64_t>> ParseExpertMap(absl::string_view text);
// Slot -> expert as the strategy has it for so many experts: expert_map, or the experts spread evenly over
// expert_slots. Error: slots that ep does not divide or that are too few, a map of another length, an entry
// that is not an expert, an expert without a slot.
absl::StatusOr<std::vector<int64_t>> ExpertMapOf(const Strategy& s, int64_t experts);

// Atomic axes by folding: cut points {1, tp, tp*cp, tp*cp*dp} and {1, etp, etp*ep, etp*ep*edp}, and
// tp/gcd(tp, kv_heads), must form a divisibility chain. kv_heads = 0: no attention. Error: which cut points
// clash, and the nearest legal sizes. Axes get names of one letter, minor first ('a' is the innermost); "pp"
// is prepended when pp > 1. Aliases: dp cp tp ep etp edp kvh; "shard" and "expert_shard", the axes that
// zero_dp and expert_zero_dp mean, where they are set; "node", the axes inside a node, where there are
// several nodes: an axis that the boundary of a node cuts is split there if the chain allows it.
// `alongside`: strategies whose plans share state with this one; the axes are then fine enough for all of
// them, so that a placement means the same in every plan. Their worlds and stages must be those of `s`.
absl::StatusOr<Mesh> FoldMesh(const Strategy& s, int64_t kv_heads, absl::Span<const Strategy> alongside = {});
// What keeps the degrees from folding, without the search for the nearest legal ones; "" if they fold.
std::string FoldProblem(const Strategy& s, int64_t kv_heads);

}  // namespace moe::passes
