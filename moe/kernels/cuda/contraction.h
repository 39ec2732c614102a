// How the CUDA back end does an einsum, as plain data: which factors are rows, columns and the reduced side
// of a matrix product, which are batches of products, and where the rows of ragged terms come in. Decided on
// the host from the rule and the local extents alone.
//
//   const Contraction c = PlanContraction(*context.rule, context.extent, {-1, -1}, -1);
//   // "b s h, h n d -> b s n d": kDense, m = b s, n = n d, k = h, no batches
//   // "e b c p! h, e h f -> e b c p! f": kRowsInM, one group per expert
//
// A product is c[i, j] = sum over l of a[i, l] b[l, j] with strides in elements; c has unit stride in j, a in
// i or l, b in l or j. Where the einsum is the other way round, `swapped` says that a is operand 1. What is
// no product of matrices is kLoops. Pure function; allocates nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"
#include "moe/ir/rule.h"

namespace moe::kernels {

enum class ContractionKind : uint8_t {
  kLoops,    // no matrix product, or too small a one
  kDense,    // batches of products
  kRowsInM,  // a and c are ragged: group g has the rows of its cells as m
  kRowsInK,  // a and b are ragged, c is not: group g has the rows of its cells as k; none gives zero
};

// One factor (or several that lie together) that only steps through memory.
struct ContractionLoop {
  int64_t extent = 1;
  int64_t a = 0, b = 0, c = 0;  // strides in elements
};

struct Contraction {
  ContractionKind kind = ContractionKind::kLoops;
  bool swapped = false;
  // Extents; that of the ragged side is 0. Strides of a[i, l], b[l, j], c[i, j] in elements.
  int64_t m = 1, n = 1, k = 1;
  int64_t a_m = 0, a_k = 0, b_k = 0, b_n = 0, c_m = 0;
  absl::InlinedVector<ContractionLoop, 3> batches;  // dense only
  ContractionLoop outer_k;                          // dense only: a second reduced side that does not merge
  // Ragged: cells of a group follow one another. Strides of the dense terms from group to group.
  int64_t groups = 1, cells_per_group = 1;
  int64_t b_group = 0, c_group = 0;
};

// `ragged_in`, `ragged_out`: the ragged dim of each operand and of the result; -1: dense.
Contraction PlanContraction(const ShardingRule& rule, const std::vector<int64_t>& extent,
                            absl::Span<const int> ragged_in, int ragged_out);

}  // namespace moe::kernels
