// Initial values of states. Parameters: a pure function of (seed, parameter name, index of the element in the
// logical tensor), so they do not depend on the layout. Working copies: their parameters', which storing
// rounds. Expert maps: what their attributes say. All others: zero.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/strings/string_view.h"
#include "moe/ir/graph.h"
#include "moe/ir/stored_rows.h"
#include "moe/runtime/local.h"

namespace moe::runtime {

// 64 random bits by two rounds of SplitMix64 over the key and the counter.
uint64_t CounterBits(uint64_t seed, uint64_t stream, uint64_t counter);
uint64_t StreamOf(absl::string_view name);  // FNV-1a of the name

// Value of element `index`, as stored, of a state. Of a parameter by its attributes init ("normal" with std,
// by Box-Muller; "ones"; "zeros"); rows that hold nothing (stored_rows.h) are zero.
class Initializer {
 public:
  Initializer(const Module& module, const State& state, uint64_t seed);
  bool AllZero() const { return kind_ == kZeros; }
  double operator()(int64_t index) const;

 private:
  enum { kNormal, kOnes, kZeros, kTable } kind_;
  std::optional<StoredRows> rows_;
  int64_t row_elements_ = 1;
  std::vector<int64_t> table_;
  double std_ = 0;
  uint64_t seed_, stream_;
};

// Writes the values of a block, in local order, to `data`; several threads do it where there is much to do.
void InitializeBlock(const Initializer& init, const Block& block, DType dtype, char* data);

}  // namespace moe::runtime
