#include "moe/ir/ops/fused_program.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace moe {
namespace {

constexpr FusedOp kOps[] = {FusedOp::kAdd,      FusedOp::kMul, FusedOp::kScale,      FusedOp::kSilu,
                            FusedOp::kSiluGrad, FusedOp::kLog, FusedOp::kReciprocal, FusedOp::kAtLeast};

// Takes the next word; empty at the end.
absl::string_view NextWord(absl::string_view* text) {
  while (absl::ConsumePrefix(text, " ")) {
  }
  const absl::string_view word = text->substr(0, text->find(' '));
  text->remove_prefix(word.size());
  return word;
}

bool ParseOperand(absl::string_view word, int num_operands, int num_done, int* out) {
  int i = 0;
  if (absl::ConsumePrefix(&word, "x")) {
    if (!absl::SimpleAtoi(word, &i) || i < 0 || i >= num_operands) return false;
    *out = i;
    return true;
  }
  if (!absl::ConsumePrefix(&word, "t") || !absl::SimpleAtoi(word, &i) || i < 0 || i >= num_done) return false;
  *out = -1 - i;
  return true;
}

std::string OperandText(int i) { return i >= 0 ? absl::StrCat("x", i) : absl::StrCat("t", -1 - i); }

}  // namespace

absl::string_view FusedOpName(FusedOp op) {
  switch (op) {
    case FusedOp::kAdd:
      return "add";
    case FusedOp::kMul:
      return "mul";
    case FusedOp::kScale:
      return "scale";
    case FusedOp::kSilu:
      return "silu";
    case FusedOp::kSiluGrad:
      return "silu_grad";
    case FusedOp::kLog:
      return "log";
    case FusedOp::kReciprocal:
      return "reciprocal";
    case FusedOp::kAtLeast:
      return "at_least";
  }
  return "?";
}

bool ParseFusedOp(absl::string_view name, FusedOp* op) {
  for (const FusedOp o : kOps) {
    if (FusedOpName(o) != name) continue;
    *op = o;
    return true;
  }
  return false;
}

int NumFusedOperands(FusedOp op) {
  return op == FusedOp::kAdd || op == FusedOp::kMul || op == FusedOp::kSiluGrad ? 2 : 1;
}

bool HasFusedConstant(FusedOp op) { return op == FusedOp::kScale || op == FusedOp::kAtLeast; }

absl::StatusOr<FusedProgram> ParseFusedProgram(const std::vector<std::string>& lines, int num_operands) {
  if (lines.empty() || lines.size() > kMaxFusedInstructions) {
    return absl::InvalidArgumentError(
        absl::StrCat("a program of ", lines.size(), " instructions; legal are 1 to ", kMaxFusedInstructions));
  }
  FusedProgram program;
  for (const std::string& line : lines) {
    const int n = static_cast<int>(program.size());
    const auto error = [&](absl::string_view legal) {
      return absl::InvalidArgumentError(absl::StrCat("instruction '", line, "': ", legal));
    };
    absl::string_view text = line;
    FusedInstruction in;
    absl::string_view target = NextWord(&text);
    int index = 0;
    if (!absl::ConsumePrefix(&target, "t") || !absl::SimpleAtoi(target, &index) || index != n ||
        NextWord(&text) != "=") {
      return error(absl::StrCat("should begin with 't", n, " ='"));
    }
    if (!ParseFusedOp(NextWord(&text), &in.op)) {
      return error("the op must be one of add, mul, scale, silu, silu_grad, log, reciprocal, at_least");
    }
    for (int i = 0; i < NumFusedOperands(in.op); ++i) {
      if (!ParseOperand(NextWord(&text), num_operands, n, i == 0 ? &in.a : &in.b)) {
        return error(absl::StrCat("operands are x0 to x", num_operands - 1, " and earlier t"));
      }
    }
    if (HasFusedConstant(in.op) && !absl::SimpleAtod(NextWord(&text), &in.constant))
      return error("must end with a number");
    if (!NextWord(&text).empty()) return error("too many words");
    program.push_back(in);
  }
  return program;
}

std::vector<std::string> FusedProgramText(const FusedProgram& program) {
  std::vector<std::string> lines;
  for (size_t i = 0; i < program.size(); ++i) {
    const FusedInstruction& in = program[i];
    std::string line = absl::StrCat("t", i, " = ", FusedOpName(in.op), " ", OperandText(in.a));
    if (NumFusedOperands(in.op) == 2) absl::StrAppend(&line, " ", OperandText(in.b));
    if (HasFusedConstant(in.op)) absl::StrAppendFormat(&line, " %.17g", in.constant);
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace moe
