#include "moe/testing/compare_functions.h"

#include <gtest/gtest.h>

#include "moe/base/status_matchers.h"
#include "moe/testing/sharded_model.h"

namespace moe::testing {
namespace {

TEST(CompareFunctions, NamesTheNodeThatDiffers) {
  ASSERT_OK_AND_ASSIGN(const auto m, CompileSharded(SmallMoe(), "tp=2 dp=2 ep=2 sp"));
  Function* placed = m->module().Find("chunk0");
  const Function& logical = *m->logical->Find("chunk0");
  EXPECT_OK(CompareWithOneDevice(logical, *placed));
  Node* scale = placed->NodesOf("math.scale")[0];
  scale->Set("by", 2 * scale->Float("by"));
  ExpectError(CompareWithOneDevice(logical, *placed), absl::StatusCode::kInternal, "%" + scale->result_name(),
              "on rank", "on one device");
}

TEST(CompareFunctions, CatchesAReductionThatIsMissing) {
  ASSERT_OK_AND_ASSIGN(const auto m, CompileSharded(SmallDense(), "tp=2 dp=2"));
  Function* placed = m->module().Find("chunk0");
  Node* reduce = nullptr;
  for (Node* n : placed->NodesOf("comm.all_reduce")) {
    if (reduce == nullptr && n->type().rank() == 3) reduce = n;
  }
  ASSERT_NE(reduce, nullptr);
  placed->ReplaceAllUses(reduce->result(), reduce->operand(0));
  ExpectError(CompareWithOneDevice(*m->logical->Find("chunk0"), *placed), absl::StatusCode::kInternal,
              "on rank");
}

}  // namespace
}  // namespace moe::testing
