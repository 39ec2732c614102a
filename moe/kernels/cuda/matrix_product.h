// The back end's own matrix products: dense ones that cuBLASLt does not take, and the grouped ones of experts
// with ragged rows, whose numbers only the device knows.
//
//   RETURN_IF_ERROR(LaunchProduct(product, stream));
//
// Tiles of 128 x 128 go round the blocks of a fixed grid, which find groups and rows in device memory:
// nothing waits for the host, and the launch can be recorded in a graph. bf16 and f16 on tensor cores,
// operands of two dtypes and f32 with plain multiply-adds; sums in f32, in a fixed order. Groups without rows
// cost nothing in a ragged result and give zeros in a dense one.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "moe/device/cuda/cuda.h"
#include "moe/kernels/cuda/contraction.h"
#include "moe/kernels/cuda/ragged.h"
#include "moe/kernels/cuda/vec.h"

namespace moe::kernels {

struct MatrixOperand {
  void* data = nullptr;
  int ragged = -1;  // >= 0: the rows are at header->data[ragged], and `data` says nothing
  Storage storage = Storage::kF32;
  bool aligned = false;  // the data, or wherever the rows may lie, is aligned to 16 bytes
};

struct MatrixProduct {
  Contraction shape;
  MatrixOperand a, b, c;  // a and b as Contraction has them, after `swapped`
  RaggedRows rows;
  int64_t most_rows = 0;  // of a ragged term, for the size of the grid
};

absl::Status LaunchProduct(const MatrixProduct& product, cudaStream_t stream);

}  // namespace moe::kernels
