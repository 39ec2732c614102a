// CUDA C++ for the program of a math.fused node, as NVRTC compiles it: one kernel "fused" without any
// include.
//
//   const std::string source = FusedSource({program, {{DType::kBF16, false}, {DType::kF32, true}},
//   DType::kBF16});
//
// A thread takes 8 elements at a time, with accesses of 16 bytes where all operands begin on 16 bytes;
// arithmetic is f32 whatever is stored, and results are rounded once. Scalars are read once by each thread.
// The kernel is
//
//   fused(const void* x0, ..., void* y, long long n, int aligned)
//
// or, with `ragged`, fused(const void* x0, ..., const void* header, long long width): tensors are where the
// RaggedHeader says (operands in their order, then y), and have header->rows * width elements. The same node
// always gives the same text. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "moe/ir/ops/fused_program.h"
#include "moe/ir/types.h"

namespace moe::kernels {

struct FusedOperand {
  DType dtype = DType::kF32;  // f32, bf16 or f16
  bool scalar = false;
};

struct FusedKernel {
  FusedProgram program;
  std::vector<FusedOperand> operands;
  DType result = DType::kF32;
  bool ragged = false;
};

std::string FusedSource(const FusedKernel& kernel);

}  // namespace moe::kernels
