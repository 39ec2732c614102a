#include "moe/testing/nan_check.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "absl/strings/match.h"
#include "moe/testing/op_cases_run.h"

namespace moe::testing {

int64_t ExpectNaNIsKept(const OpCase& c, const kernels::Kernel& reference, uint64_t seed,
                        const RunOperands& run) {
  if (absl::StartsWith(c.name, "optim.clip") || absl::StrContains(c.name, "adamw")) return 0;
  using Values = std::vector<HostValue>;
  std::mt19937_64 rng(seed);
  int64_t looked_at = 0;
  const absl::StatusOr<Values> usual = RunNode(*c.node, reference, c.operands);
  for (size_t o = 0; o < c.operands.size(); ++o) {
    const std::vector<std::string>& names = c.node->op().operand_names;
    if (!IsFloat(c.operands[o].dtype) || c.operands[o].data.empty()) continue;
    if (o < names.size() && names[o] == "mask") continue;  // says what is data, and is none
    const size_t at = rng() % c.operands[o].data.size();
    const auto with = [&](double value) {
      Values operands = c.operands;
      operands[o].data[at] = value;
      return operands;
    };
    const double x = c.operands[o].data[at];
    const absl::StatusOr<Values> more = RunNode(*c.node, reference, with(x + 1)),
                                 less = RunNode(*c.node, reference, with(x - 1)),
                                 got = run(with(std::numeric_limits<double>::quiet_NaN()));
    for (const absl::StatusOr<Values>* values : {&usual, &more, &less, &got}) {
      EXPECT_TRUE(values->ok()) << c.name << ": " << values->status();
      if (!values->ok()) return looked_at;
    }
    // A choice of the largest takes NaN first; what it takes then moves up.
    const bool chooses = absl::StartsWith(c.name, "moe.top_k");
    const auto is_nan = [](double y) { return std::isnan(y); };
    for (size_t r = 0; r < got->size(); ++r) {
      const std::vector<double>&y = (*got)[r].data, &y0 = (*usual)[r].data;
      for (size_t i = 0; IsFloat((*got)[r].dtype) && i < y.size(); ++i) {
        const auto differs = [&](const Values& other) {
          return i < y0.size() && i < other[r].data.size() && other[r].data[i] != y0[i];
        };
        if (!differs(*more) && !differs(*less)) continue;
        ++looked_at;
        if (chooses ? std::any_of(y.begin(), y.end(), is_nan) : is_nan(y[i])) continue;
        ADD_FAILURE() << c.name << ": result " << r << " element " << i << " is " << y[i] << " where operand "
                      << o << " element " << at << " is NaN; seed " << seed;
        return looked_at;
      }
    }
  }
  return looked_at;
}

}  // namespace moe::testing
