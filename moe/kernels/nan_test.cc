// NaN is never swallowed: a result that depends on an operand is NaN where the operand is. So a weight that
// is not a number is seen in the loss, whatever layer it is in.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>
#include <vector>

#include "moe/base/status_matchers.h"
#include "moe/kernels/kernel.h"
#include "moe/testing/nan_check.h"
#include "moe/testing/op_cases.h"
#include "moe/testing/op_cases_run.h"

namespace moe::kernels {
namespace {

using testing::HostValue;
using testing::OpCase;
using Values = std::vector<HostValue>;

class NaNTest : public ::testing::TestWithParam<DType> {};

TEST_P(NaNTest, EveryResultThatDependsOnAnElementIsNaNWithIt) {
  const uint64_t seed = std::random_device()();
  int64_t looked_at = 0;
  for (const OpCase& c : testing::MakeOpCases(Ops(), {.dtype = GetParam(), .seed = seed})) {
    ASSERT_OK_AND_ASSIGN(const Kernel* reference, Kernels().Lookup(*c.node, Backend::kReference));
    for (const Backend backend : {Backend::kReference, Backend::kCpu, Backend::kBlas}) {
      SCOPED_TRACE(BackendName(backend));
      ASSERT_OK_AND_ASSIGN(const Kernel* kernel, Kernels().Lookup(*c.node, backend));
      looked_at += testing::ExpectNaNIsKept(c, *reference, seed, [&](const Values& operands) {
        return testing::RunNode(*c.node, *kernel, operands);
      });
    }
  }
  EXPECT_GT(looked_at, 1000);
}

// The weights that an update would make are part of its check, not only the gradients.
TEST_P(NaNTest, AnUpdateThatDoesNotFitIsAnError) {
  int seen = 0;
  for (const OpCase& c : testing::MakeOpCases(Ops(), {.dtype = GetParam()})) {
    const int rate = c.name == "optim.adamw" ? 6 : c.name == "optim.multi_adamw" ? 2 : -1;
    if (rate < 0) continue;
    for (const double learning_rate : {1e300, std::numeric_limits<double>::infinity()}) {
      Values operands = c.operands;
      operands[rate].data[0] = GetParam() == DType::kF64 ? learning_rate * 1e10 : learning_rate;
      for (const Backend backend : {Backend::kReference, Backend::kCpu, Backend::kBlas}) {
        ASSERT_OK_AND_ASSIGN(const Kernel* kernel, Kernels().Lookup(*c.node, backend));
        EXPECT_OK(testing::RunNode(*c.node, *kernel, c.operands).status());
        EXPECT_THAT(testing::RunNode(*c.node, *kernel, operands).status().message(),
                    ::testing::HasSubstr("the updated weights are not finite"))
            << c.name << " " << BackendName(backend);
        ++seen;
      }
    }
  }
  EXPECT_EQ(seen, 12);
}

INSTANTIATE_TEST_SUITE_P(DTypes, NaNTest, ::testing::Values(DType::kF64, DType::kF32),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

}  // namespace
}  // namespace moe::kernels
