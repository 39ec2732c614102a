// Sample nodes of every op, with values for their operands: what the kernel tests and the completeness test
// run on.
//
//   for (OpCase& c : MakeOpCases(Ops(), {.dtype = DType::kF64, .seed = 7})) {
//     ASSERT_OK_AND_ASSIGN(std::vector<HostValue> y, RunNode(*c.node, kernel, c.operands));
//   }
//
// Every non-comm op has at least one case; ops that take ragged values have dense and ragged ones. Integer
// operands are valid: labels in the vocabulary, experts and slots as routing would give them, with masked
// tokens, dropped choices and an expert that gets nothing. A case owns its module; values are plain host
// memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "moe/ir/graph.h"
#include "moe/ir/registry.h"
#include "moe/ir/types.h"

namespace moe::testing {

// A global or local value, as doubles whatever its dtype. Ragged: sizes of the cells, and packed rows in
// `data`.
struct HostValue {
  DType dtype = DType::kF64;
  Dims dims;
  int ragged = -1;
  int64_t ragged_bound = 0;
  std::vector<int32_t> sizes;
  std::vector<double> data;

  int64_t cells() const;         // product of the dims before the ragged one
  int64_t row_elements() const;  // product of the dims after it
};

struct OpCase {
  std::string name;  // "moe.combine/dropless"
  std::unique_ptr<Module> module;
  Node* node = nullptr;  // in the only function of the module; its operands are arguments
  std::vector<HostValue> operands;
};

// Extents. The default ones divide by 4 wherever a rule may shard.
struct OpSizes {
  int64_t batch = 4, sequence = 8, hidden = 8, kv_heads = 4, groups_per_kv = 4, head_dim = 4;
  int64_t vocab_blocks = 4, block_words = 4, vocab = 14;  // vocab <= blocks x words: the rest is padding
  int64_t experts = 4, groups = 4, tokens = 8, k = 4, capacity = 5, ffn = 8;
  static OpSizes
  Odd();  // hidden 328, 7 experts, vocabulary 1009, head_dim 41, sequences beyond one attention block
  static OpSizes Tiny();  // everything 1, or as small as the op allows
};

struct OpCaseOptions {
  DType dtype = DType::kF64;  // of all reals, but f32 at least where the op declares its operand wide
  uint64_t seed = 1;
  OpSizes sizes;
  double masked = 0.2;  // share of tokens that are padding; 1: no token is routed at all
};
std::vector<OpCase> MakeOpCases(const OpRegistry& registry, const OpCaseOptions& options);

}  // namespace moe::testing
