// Einsums that are not a matrix product, over any strides: sums, transposes, products of three, per-sample
// factors. One thread for each element of the result, or one block where there are few of them and much to
// reduce. Sums in f32, in a fixed order.
//
//   RETURN_IF_ERROR(LaunchEinsumLoops(loops, stream));
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "moe/device/cuda/cuda.h"
#include "moe/kernels/cuda/ragged.h"
#include "moe/kernels/cuda/vec.h"

namespace moe::kernels {

constexpr int kMaxLoopTerms = 5, kMaxLoopFactors = 12;  // operands and, as the last, the result

struct LoopTerm {
  void* data = nullptr;
  int ragged = -1;  // >= 0: the rows are at header->data[ragged]
  Storage storage = Storage::kF32;
  int64_t row_elements = 0;  // ragged only
};

struct LoopFactor {
  int64_t extent = 1;
  int64_t stride[kMaxLoopTerms] = {};  // elements; within the row for ragged terms
  int64_t cell = 0;                    // cells of ragged terms
};

struct EinsumLoops {
  int num_in = 0;
  LoopTerm term[kMaxLoopTerms];  // [num_in] is the result
  // Of the result, in its order: those before its ragged dim (all, if it is dense), then those after.
  int num_outer = 0, num_inner = 0;
  LoopFactor of_result[kMaxLoopFactors];
  int num_reduced = 0;  // without the ragged one
  LoopFactor reduced[kMaxLoopFactors];
  bool result_is_ragged = false, reduces_rows = false;
  RaggedRows rows;
  int64_t most_rows = 0;  // of ragged terms, for the size of the grid
};

absl::Status LaunchEinsumLoops(const EinsumLoops& loops, cudaStream_t stream);

}  // namespace moe::kernels
