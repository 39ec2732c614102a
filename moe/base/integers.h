// Arithmetic on sizes and counts, of integers that are not negative. `to` and `by` are at least 1.
//
//   RoundUp(100, 64) == 128;   CeilDiv(100, 64) == 2;   Divisors(12) == {1, 2, 3, 4, 6, 12}
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace moe {

constexpr int64_t CeilDiv(int64_t n, int64_t by) { return (n + by - 1) / by; }

// The least multiple of `to` that is n or more.
constexpr int64_t RoundUp(int64_t n, int64_t to) { return CeilDiv(n, to) * to; }

// Ascending, with 1 and n itself. None for n < 1.
inline std::vector<int64_t> Divisors(int64_t n) {
  std::vector<int64_t> low, high;
  for (int64_t d = 1; d <= n / d; ++d) {
    if (n % d != 0) continue;
    low.push_back(d);
    if (d != n / d) high.push_back(n / d);
  }
  low.insert(low.end(), high.rbegin(), high.rend());
  return low;
}

}  // namespace moe
