// Products of bf16 matrices, summed in f32 and rounded once: oneDNN's where the CPU has instructions for
// them.
//
//   if (Bf16Product product = ChosenBf16Product(); product != nullptr && product(shape, a, b, c)) ...
//
// Without such a product operands are widened and multiplied in f32 (moe/kernels/widen.h). oneDNN refuses
// bf16 below AVX-512 altogether, and what it does in AVX-512 without bf16 instructions is emulation, so
// neither is chosen. Thread-safe but for SetBf16Product.
#pragma once

#include <cstdint>

#include "moe/ir/types.h"

namespace moe::kernels {

enum class Bf16 : uint16_t {};  // as it lies in memory

// c[m, n] = a b, row-major: a is [m, lda], or [k, lda] where it is transposed; b is [k, ldb] or [n, ldb].
struct MatrixProduct {
  int64_t m, n, k;
  bool trans_a, trans_b;
  int64_t lda, ldb, ldc;
  bool accumulate = false;  // adds to c, which is wide then
  bool wide = true;         // c is f32, else bf16
};
// False: not for this shape or CPU; c is untouched.
using Bf16Product = bool (*)(const MatrixProduct& p, const Bf16* a, const Bf16* b, void* c);

// oneDNN's if the CPU has bf16 instructions (AVX512_BF16 or AMX, as oneDNN tells), null if not.
Bf16Product ChosenBf16Product();
// For tests: chooses another, or none (null), from now on; returns what was chosen before.
Bf16Product SetBf16Product(Bf16Product product);

// A oneDNN matmul of these dtypes on the thread that calls it. False where oneDNN has none. Primitives are
// kept per thread and shape, the last 256 of them.
bool LibraryProduct(DType in, DType out, const MatrixProduct& p, const void* a, const void* b, void* c);

}  // namespace moe::kernels
