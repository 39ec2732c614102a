// Where to cut a stack of layers: contiguous runs, one per chunk, so that the dearest run is as cheap as
// possible.
//
//   ASSIGN_OR_RETURN(std::vector<int> cuts, CutLayers({3, 1, 1, 1, 2}, 2));  // {0, 2, 5}: layers 0-1 | 2-4
//
// Pure functions.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace moe::passes {

// Chunk c is layers [cuts[c], cuts[c + 1]); none is empty. Exact, by dynamic programming over layers; among
// equals, the more even one. Error: more chunks than layers.
absl::StatusOr<std::vector<int>> CutLayers(absl::Span<const double> cost, int chunks);

}  // namespace moe::passes
