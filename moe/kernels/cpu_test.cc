// Every CPU and BLAS kernel against the reference kernel, on fresh random inputs.

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>

#include "moe/base/status_matchers.h"
#include "moe/ir/builder.h"
#include "moe/kernels/kernel.h"
#include "moe/kernels/widen.h"
#include "moe/testing/op_cases.h"
#include "moe/testing/op_cases_run.h"

namespace moe::kernels {
namespace {

double Tolerance(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return 1e-12;
    case DType::kBF16:  // results that differ in f32 may round to neighbours
      return 1e-3;
    case DType::kF16:
      return 1e-4;
    default:
      return 1e-5;
  }
}

uint64_t Seed() {
  static const uint64_t seed = std::random_device()();
  return seed;
}

bool SameCode(const Kernel& a, const Kernel& b) {
  if (a.wide != nullptr && b.wide != nullptr) return SameCode(*a.wide, *b.wide);
  return a.wide == nullptr && b.wide == nullptr && a.fn == b.fn;
}

// Results of the fast kernels agree with those of the reference; all write every element.
void Compare(const testing::OpCase& c, DType dtype, const testing::RunNodeOptions& options = {}) {
  SCOPED_TRACE(::testing::Message() << c.name << " " << DTypeName(dtype) << " seed " << Seed());
  ASSERT_OK_AND_ASSIGN(const Kernel* reference, Kernels().Lookup(*c.node, Backend::kReference));
  ASSERT_OK_AND_ASSIGN(const std::vector<testing::HostValue> want,
                       testing::RunNode(*c.node, *reference, c.operands));
  for (const Backend backend : {Backend::kCpu, Backend::kBlas}) {
    ASSERT_OK_AND_ASSIGN(const Kernel* kernel, Kernels().Lookup(*c.node, backend));
    if (SameCode(*kernel, *reference)) continue;
    ASSERT_OK_AND_ASSIGN(const std::vector<testing::HostValue> got,
                         testing::RunNode(*c.node, *kernel, c.operands, options));
    for (size_t r = 0; r < want.size(); ++r) {
      EXPECT_LE(testing::RelativeError(got[r], want[r]), IsFloat(want[r].dtype) ? Tolerance(dtype) : 0)
          << BackendName(backend) << " result " << r;
    }
  }
}

class CpuTest : public ::testing::TestWithParam<DType> {
 protected:
  void CompareAll(testing::OpSizes sizes, double masked = 0.2, const testing::RunNodeOptions& run = {}) {
    RecordProperty("seed", std::to_string(Seed()));
    for (const testing::OpCase& c : testing::MakeOpCases(Ops(), {GetParam(), Seed(), sizes, masked}))
      Compare(c, GetParam(), run);
  }
};

TEST_P(CpuTest, Small) { CompareAll(testing::OpSizes()); }
TEST_P(CpuTest, SmallestSizes) { CompareAll(testing::OpSizes::Tiny()); }
TEST_P(CpuTest, NoTokenIsRouted) { CompareAll(testing::OpSizes(), 1.0); }
TEST_P(CpuTest, InPlace) { CompareAll(testing::OpSizes(), 0.2, {.in_place = true}); }
TEST_P(CpuTest, RaggedRowsSpill) { CompareAll(testing::OpSizes(), 0.2, {.spill_from_row = 3}); }

class CpuSizesTest : public CpuTest {};

TEST_P(CpuSizesTest, OddSizes) { CompareAll(testing::OpSizes::Odd()); }

// Several attention blocks, some wholly masked, with heads narrower than a vector.
TEST_P(CpuSizesTest, HeadDimOfEight) {
  testing::OpSizes s;
  s.batch = 1, s.sequence = 200, s.kv_heads = 1, s.groups_per_kv = 3, s.head_dim = 8;
  CompareAll(s);
}

INSTANTIATE_TEST_SUITE_P(DTypes, CpuTest,
                         ::testing::Values(DType::kF32, DType::kF64, DType::kBF16, DType::kF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

INSTANTIATE_TEST_SUITE_P(DTypes, CpuSizesTest, ::testing::Values(DType::kF32, DType::kF64, DType::kBF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

// Kernels are told offsets of factors that only results have, or that name ids: vocabulary, experts.
TEST(CpuShardTest, OffsetsAndLocalExtents) {
  const Mesh mesh({{"a", 2}});
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    int compared = 0;
    for (const testing::OpCase& c : testing::MakeOpCases(Ops(), {dtype, Seed(), testing::OpSizes(), 0.2})) {
      SCOPED_TRACE(::testing::Message() << c.name << " " << DTypeName(dtype) << " seed " << Seed());
      ASSERT_OK_AND_ASSIGN(const Kernel* reference, Kernels().Lookup(*c.node, Backend::kReference));
      std::vector<const Kernel*> fast;
      for (const Backend backend : {Backend::kCpu, Backend::kBlas}) {
        ASSERT_OK_AND_ASSIGN(const Kernel* kernel, Kernels().Lookup(*c.node, backend));
        if (!SameCode(*kernel, *reference)) fast.push_back(kernel);
      }
      ASSERT_OK_AND_ASSIGN(const ShardingRule* rule, c.node->Rule());
      ASSERT_OK_AND_ASSIGN(const std::vector<int64_t> extents, FactorExtents(*c.node));
      for (int f = 0; f < rule->num_factors(); ++f) {
        FactorAssignment assignment(rule->num_factors());
        assignment[f] = {0};
        const auto placements = PlaceNode(*c.node, *rule, extents, assignment, {}, mesh);
        if (!placements.ok()) continue;
        for (int64_t rank = 0; rank < 2; ++rank) {
          std::vector<testing::HostValue> in;
          for (size_t i = 0; i < c.operands.size(); ++i) {
            in.push_back(testing::ShardOf(c.operands[i], placements->operands[i], mesh, rank));
          }
          ASSERT_OK_AND_ASSIGN(auto want,
                               testing::RunNodeOnRank(*c.node, *reference, assignment, mesh, rank, in));
          for (const Kernel* kernel : fast) {
            ASSERT_OK_AND_ASSIGN(auto got,
                                 testing::RunNodeOnRank(*c.node, *kernel, assignment, mesh, rank, in));
            for (size_t r = 0; r < want.size(); ++r) {
              EXPECT_LE(testing::RelativeError(got[r], want[r]),
                        IsFloat(want[r].dtype) ? Tolerance(dtype) : 0)
                  << BackendName(kernel->backend) << " factor " << rule->factors[f] << " rank " << rank
                  << " result " << r;
              ++compared;
            }
          }
        }
      }
    }
    EXPECT_GT(compared, 150);
  }
}

// Elementwise ops are widened a block at a time, so nobody could change a whole operand.
TEST(WidenTest, BlocksCannotBePrepared) {
  Module m;
  Function* f = m.AddFunction("f");
  const Value x = f->AddArg("x", Type(DType::kBF16, {8}));
  ASSERT_OK_AND_ASSIGN(Node* const add, Builder(f).CreateNode("math.add", {x, x}));
  KernelContext c;
  c.node = add;
  ExpectError(RunWidened(Kernel(), c, [](const KernelContext&, int, float*) { return absl::OkStatus(); }),
              absl::StatusCode::kInternal, "math.add is computed in blocks");
}

TEST(LookupTest, SaysWhatThereIs) {
  const std::vector<testing::OpCase> cases = testing::MakeOpCases(Ops(), {});
  ExpectError(Kernels().Lookup(*cases.front().node, Backend::kCuda), absl::StatusCode::kNotFound,
              cases.front().node->op_name(), "cuda", "f64", "there is: ", "reference f32");
}

}  // namespace
}  // namespace moe::kernels
