// Products of operands rounded to block-scaled e4m3 (multiply = "f8e4m3" on math.einsum), as the definition
// has them: what the kernels of all back ends share.
//
//   ASSIGN_OR_RETURN(const GroupedProduct p, GroupedProductOf(*c.rule));
//   // "e b c p h, e h f -> e b c p f"    g = e   m = b c p   n = f   k = h
//   // "e b c p f, e b c p h -> e h f"    g = e   m = f   n = h   k = b c p
//   RETURN_IF_ERROR(RoundOperand(c, 0, copy));   // copy: what the product multiplies
//
// Along the summed side k of a group an operand is cut into runs of 128 values, the last one shorter; of
// ragged rows these are the ones that are there. Runs are of the local shard. Each has a scale of its own for
// every row, or column, that the operand keeps: 1 x 128 for activations, gradients and weights alike.
// DeepSeek-V3 (arXiv 2412.19437, section 3.3.2) has 128 x 128 for weights, so that one copy serves forward
// and backward; here each product rounds for itself, runs are finer, and how columns are sharded never shows.
//
// A run is rounded as it would travel (moe/device/wire_codec.h): an error of at most max(|x| / 16, a /
// 458752) of a value x in a run whose largest magnitude is a; a run with a value that is not finite is NaN.
// Products are summed in f32 at least. Pure functions.
#pragma once

#include <cstdint>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/ir/rule.h"
#include "moe/kernels/kernel.h"

namespace moe::kernels {

// An einsum as batches of matrix products: g stands first in all three terms; each other side stands
// together, in one order in both terms that have it.
struct GroupedProduct {
  using Side = absl::InlinedVector<FactorId, 4>;
  Side g, m, n, k;                      // a has g m k, b has g n k, the result has g m n
  bool a_by_k = false, b_by_k = false;  // k comes last in the operand
  bool c_by_n = false;                  // n comes last in the result
};
// Error: InvalidArgument if the rule is not such a product, with the reason.
absl::StatusOr<GroupedProduct> GroupedProductOf(const ShardingRule& rule);

// Whether an einsum multiplies rounded operands.
bool RoundsOperands(const Node& n);

// In place: `x` has the elements of operand `operand` (0 or 1) of the einsum, in their order. T: float,
// double. Error: InvalidArgument where the einsum is not a grouped product, or a run does not consist of
// whole rows that follow one another.
template <typename T>
absl::Status RoundOperand(const KernelContext& c, int operand, T* x);
extern template absl::Status RoundOperand<float>(const KernelContext& c, int operand, float* x);
extern template absl::Status RoundOperand<double>(const KernelContext& c, int operand, double* x);

// Runs `product` on rounded copies of both operands, which it puts on the heap: for kernels that are a
// reference.
template <typename T>
absl::Status RunOnRounded(KernelContext& c, absl::Status (*product)(KernelContext& c));
extern template absl::Status RunOnRounded<float>(KernelContext& c, absl::Status (*product)(KernelContext& c));
extern template absl::Status RunOnRounded<double>(KernelContext& c,
                                                  absl::Status (*product)(KernelContext& c));

}  // namespace moe::kernels
