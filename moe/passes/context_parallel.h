// Context parallel: the order of the sequence over cp ranks, and attention as a ring. Works on the logical
// step, before anything is placed: what it writes means the same on one device.
//
// Order. Causal attention makes late positions dear: of cp contiguous parts the last costs almost twice the
// average. In zig-zag order, of 2 cp equal blocks of the sequence rank i has blocks i and 2 cp - 1 - i, and
// all ranks do the same work. The batch is brought to that order by math.permute_blocks, once per input;
// positions travel with the tokens, so everything that treats tokens alike does not notice. Routing groups
// are blocks of the sequence: where the order keeps them whole (2 cp divides their number) they only change
// places, otherwise tokens go back to the batch's order before they are split into groups, and to the zig-zag
// after (the group's tokens are gathered over cp there in any order).
//
// Ring (Liu et al. 2023). Attention over the keys of all ranks becomes cp steps: each sees one block of keys,
// and meanwhile the keys go to the next rank by math.rotate. Partial outputs are merged by their
// log-sum-exps. In the backward, gradients of keys and values travel with them, and arrive home after cp
// rotations. Blocks that the causal mask hides are skipped by the attention kernel.
//
//   %a0, %l0 = nn.attention(%q, %k, %v, %p, %p) {blocks = 2}
//   %k1 = math.rotate(%k) {blocks = 2, dim = 1}
//   ...
//   %a1, %l1 = nn.attention(%q, %k1, %v1, %p, %p1) {blocks = 2}
//   %a, %l = nn.attention_merge(%a0, %l0, %a1, %l1)
//
// Without the ring, `shard` gathers keys and values over cp. The ring moves about as many bytes, hides them
// behind compute, and never holds the whole of the keys; `cp_attention = auto` takes it where the exchange of
// a block takes less time than its attention saves by hiding it. `cp_order = auto` takes the zig-zag unless
// it cuts routing groups that contiguous parts would not.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

// The strategy has cp above 1.
bool AsksForContextParallel(const PassContext& context);

// Runs after autodiff and before partition-stages; nothing to do with cp = 1. Errors (InvalidArgument): cp
// does not divide the sequence; a zig-zag asked for whose blocks do not.
absl::StatusOr<bool> ContextParallel(Program& program, const PassContext& context);

// Per microbatch and layer, of one rank: seconds of attention by gathering and as a ring, forward and
// backward.
struct AttentionSeconds {
  double gather = 0, ring = 0;
};
// `attention`: a logical nn.attention node. The mesh says whether context ranks share a node.
AttentionSeconds EstimateAttention(const Node& attention, const strategy::Strategy& strategy,
                                   const Mesh& mesh, const cost::Target& target);

}  // namespace moe::passes
