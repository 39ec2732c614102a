#include "moe/passes/stages/layer_cuts.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace moe::passes {

absl::StatusOr<std::vector<int>> CutLayers(absl::Span<const double> cost, int chunks) {
  const int layers = static_cast<int>(cost.size());
  if (chunks > layers) {
    return absl::InvalidArgumentError(absl::StrCat(layers, layers == 1 ? " layer" : " layers", " on ", chunks,
                                                   " pipeline chunks leave one empty; legal here: 1 to ",
                                                   layers, " (pp x virtual_chunks)"));
  }
  std::vector<double> prefix(layers + 1, 0);
  for (int l = 0; l < layers; ++l) prefix[l + 1] = prefix[l] + cost[l];
  // best[c][l]: the dearest chunk when the last c chunks hold layers l and on; first[c][l]: where the second
  // begins.
  const double infinite = std::numeric_limits<double>::infinity();
  // Among equals, the smaller sum of squares: a dear head should not leave the layers before it uneven.
  using Score = std::pair<double, double>;
  std::vector<std::vector<Score>> best(chunks + 1, std::vector<Score>(layers + 1, {infinite, infinite}));
  std::vector<std::vector<int>> next(chunks + 1, std::vector<int>(layers + 1, -1));
  best[0][layers] = {0, 0};
  for (int c = 1; c <= chunks; ++c) {
    for (int l = 0; l < layers; ++l) {
      for (int end = layers; end > l; --end) {
        const double chunk = prefix[end] - prefix[l];
        const auto [dearest, squares] = best[c - 1][end];
        const Score score = {std::max(chunk, dearest), squares + chunk * chunk};
        if (score < best[c][l]) {
          best[c][l] = score;
          next[c][l] = end;
        }
      }
    }
  }
  std::vector<int> cuts = {0};
  for (int c = chunks; c > 0; --c) cuts.push_back(next[c][cuts.back()]);
  return cuts;
}

}  // namespace moe::passes
