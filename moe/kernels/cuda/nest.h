// The general nest over the factors of a rule with one operand: the elements of the result in order, with the
// offset of the operand for each, and the factors that the result lacks.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "moe/kernels/cuda/context.h"
#include "moe/kernels/loops.h"

namespace moe::kernels {

inline constexpr int kMaxNest = 12;

struct NestShape {
  int num_outer = 0, num_inner = 0;
  int64_t outer = 1, inner = 1;  // products of the extents
  // Extents, and strides of the operand; outer ones in the order of the result's dims.
  int64_t outer_extent[kMaxNest], outer_stride[kMaxNest];
  int64_t inner_extent[kMaxNest], inner_stride[kMaxNest];

  // Of the operand, for index i of a mixed radix number.
  __device__ static int64_t Offset(int64_t i, const int64_t* extent, const int64_t* stride, int n) {
    int64_t offset = 0;
    for (int d = n - 1; d >= 0; --d) {
      offset += i % extent[d] * stride[d];
      i /= extent[d];
    }
    return offset;
  }
};

// Errors: Unimplemented for ragged tensors, and for more than kMaxNest factors.
inline absl::StatusOr<NestShape> NestOf(const KernelContext& c) {
  const ShardingRule& rule = *c.rule;
  if (c.in[0].is_ragged() || c.out[0].is_ragged() || rule.num_factors() > kMaxNest) {
    return absl::UnimplementedError(absl::StrCat(c.node->op_name(), " of ragged tensors, or over more than ",
                                                 kMaxNest, " factors, on CUDA"));
  }
  const TermStrides x = StridesOf(rule.operands[0], c.extent, -1);
  NestShape nest;
  bool in_result[kMaxNest] = {};
  for (const FactorDim& dim : rule.results[0]) {
    for (const FactorId f : dim) {
      in_result[f] = true;
      nest.outer_extent[nest.num_outer] = c.extent[f];
      nest.outer_stride[nest.num_outer++] = x.element[f];
      nest.outer *= c.extent[f];
    }
  }
  for (int f = 0; f < rule.num_factors(); ++f) {
    if (in_result[f] || x.element[f] == 0) continue;
    nest.inner_extent[nest.num_inner] = c.extent[f];
    nest.inner_stride[nest.num_inner++] = x.element[f];
    nest.inner *= c.extent[f];
  }
  return nest;
}

}  // namespace moe::kernels
