// Composition: which features are tested together, feature by feature, and why those that are not cannot be.
// The page docs/composition.md; `bazel run //moe/testing:composition_page` prints it.
//
//   std::cout << CompositionPage();
//
// Counted are the strategies of the equivalence tests: those written by hand (equivalence_lines.h) and the
// points of the covering array (strategy_space.h). No state.
#pragma once

#include <string>
#include <vector>

#include "moe/testing/equivalence.h"

namespace moe::testing {

struct Composition {
  std::vector<std::string> features;
  std::vector<std::vector<int>> together;         // how many strategies have both
  std::vector<std::vector<std::string>> refused;  // where there are none: the reason; "" where nobody tried
};

// Every case that the equivalence tests run.
std::vector<EquivalenceCase> TestedCases();
Composition Compose(const std::vector<EquivalenceCase>& cases);
// As markdown, with a row and a column for each feature, letters for reasons, listed below it.
std::string CompositionPage();

}  // namespace moe::testing
