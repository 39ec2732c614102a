// Dense matrix products through cuBLASLt: c[i, j] = sum over l of a[i, l] b[l, j], row-major, in strided
// batches.
//
//   LtProduct p = {.m = m, .n = n, .k = k, .a_pitch = k, .b_pitch = n, .c_pitch = n};
//   p.a_by_k = true, p.b_by_k = false;   // a as [m, k], b as [k, n]
//   ASSIGN_OR_RETURN(bool done, MultiplyByLt(p, a, b, c, workspace, bytes, stream));
//
// Sums are in f32. f32 operands are multiplied in f32, or as TF32 where the product says so. The algorithm
// that the library's heuristic suggests for a product is asked for once per device and kept, so that the step
// loop allocates nothing. Thread-safe.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "moe/device/cuda/cuda.h"
#include "moe/ir/types.h"

namespace moe::kernels {

struct LtProduct {
  int64_t m = 0, n = 0, k = 0;
  bool a_by_k = true;   // a is [m, a_pitch], else [k, a_pitch]
  bool b_by_k = false;  // b is [n, b_pitch], else [k, b_pitch]
  int64_t a_pitch = 0, b_pitch = 0, c_pitch = 0;
  int64_t batches = 1;
  int64_t a_stride = 0, b_stride = 0, c_stride = 0;  // elements from batch to batch; 0: the same
  DType dtype = DType::kF32;                         // of a and b
  DType c_dtype = DType::kF32;
  bool accumulate = false;  // c += a b
  // f32 operands may be rounded to TF32: 8 bits of exponent, 10 of mantissa (NVIDIA, PTX ISA, "Alternate
  // floating-point data formats"). Others are what they are.
  bool tf32 = false;
};

// False if the library has no algorithm for it; then nothing was done. m, n, k and the batches are above 0.
absl::StatusOr<bool> MultiplyByLt(const LtProduct& product, const void* a, const void* b, void* c,
                                  void* workspace, int64_t workspace_bytes, cudaStream_t stream);

// Scratch bytes to offer for a product, from its size alone.
int64_t LtWorkspace(double multiplications);

}  // namespace moe::kernels
