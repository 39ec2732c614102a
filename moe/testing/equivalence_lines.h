// The strategies that the equivalence tests run besides the covering array, one line each: features that
// users rely on, with 20 losses, at odd sizes, with batches that leave some rank or expert without tokens.
//
//   for (const Line& line : Lines()) ... LineModel(line.model), line.strategy
//
// To add a strategy, add a line in equivalence_lines.cc. Constants; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "moe/testing/equivalence.h"

namespace moe::testing {

struct Line {
  const char* model;
  const char* strategy;
  int64_t global_batch;
  int steps;
};
absl::Span<const Line> Lines();
// Computed or exchanged in less than f32: losses within 2e-2 of the f64 reference, decisions replayed.
absl::Span<const Line> NarrowLines();

// Batches in which somebody has nothing to do.
struct StarvedLine {
  const char* model;
  const char* strategy;
  bool empty_sample, one_expert;
};
absl::Span<const StarvedLine> StarvedLines();

// The fields of a model by its name in a line.
std::string LineModel(const std::string& key);
// A line as a case, with the steps that it says.
EquivalenceCase CaseOf(const Line& line);
EquivalenceCase CaseOf(const StarvedLine& line);
// All of them.
std::vector<EquivalenceCase> WrittenCases();

}  // namespace moe::testing
