// Initial values of parameters: a pure function of (seed, parameter name, global element index), so they do
// not depend on the layout.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"
#include "moe/ir/graph.h"

namespace moe {

// 64 random bits by two rounds of SplitMix64 over the key and the counter.
uint64_t CounterBits(uint64_t seed, uint64_t stream, uint64_t counter);
uint64_t StreamOf(absl::string_view name);  // FNV-1a of the name

// Value of element `index` of a parameter by its attributes init ("normal" with std, by Box-Muller; "ones";
// "zeros").
class Initializer {
 public:
  Initializer(const State& state, uint64_t seed);
  double operator()(int64_t index) const;

 private:
  enum { kNormal, kOnes, kZeros } kind_;
  double std_ = 0;
  uint64_t seed_, stream_;
};

}  // namespace moe
