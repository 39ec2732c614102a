// The program of math.fused: a list of elementwise instructions in SSA form.
//
//   "t0 = mul x0 x1"        x<i> is operand i, t<i> the result of instruction i
//   "t1 = scale t0 0.5"     scale and at_least take a number
//   "t2 = silu_grad x2 t1"  the last one is the result of the node
//
// Value type without heap memory, so that kernels may parse on every run. Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace moe {

enum class FusedOp : uint8_t { kAdd, kMul, kScale, kSilu, kSiluGrad, kLog, kReciprocal, kAtLeast };

// The op that the instruction stands for: "math.silu_grad" <-> "silu_grad".
absl::string_view FusedOpName(FusedOp op);
bool ParseFusedOp(absl::string_view name, FusedOp* op);
int NumFusedOperands(FusedOp op);   // 1 or 2
bool HasFusedConstant(FusedOp op);  // scale, at_least

struct FusedInstruction {
  FusedOp op = FusedOp::kAdd;
  // Operands: i >= 0 is operand i of the node, i < 0 the result of instruction -1 - i.
  int a = 0, b = 0;
  double constant = 0;
};
inline constexpr int kMaxFusedInstructions = 16;
using FusedProgram = absl::InlinedVector<FusedInstruction, kMaxFusedInstructions>;

// Errors name the line: unknown instructions, operands that do not exist (yet), malformed numbers, empty or
// too long programs.
absl::StatusOr<FusedProgram> ParseFusedProgram(const std::vector<std::string>& lines, int num_operands);
std::vector<std::string> FusedProgramText(const FusedProgram& program);

}  // namespace moe
