// Every kernel of Backend::kCuda that is linked in against the reference kernel, on fresh random inputs: on a
// GPU, or on the emulated device.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "moe/base/status_matchers.h"
#include "moe/device/device.h"
#include "moe/kernels/kernel.h"
#include "moe/testing/nan_check.h"
#include "moe/testing/op_cases.h"
#include "moe/testing/op_cases_run.h"

namespace moe::kernels {
namespace {

double Tolerance(DType dtype) { return dtype == DType::kF32 ? 1e-5 : 1e-2; }

// The head takes exp of logits up to 5 sqrt(hidden), the bound of its operands, computed in f32: a unit in
// their last place is a relative error of the result. At hidden = 328 two of them are 2.2e-5.
double ToleranceOf(const testing::OpCase& c, double tolerance) {
  if (!absl::StartsWith(c.node->op_name(), "nn.head_stats")) return tolerance;
  return std::max(tolerance, 10 * std::sqrt(static_cast<double>(c.operands[0].dims[2])) * 0x1p-23);
}

uint64_t Seed() {
  static const uint64_t seed = std::random_device()();
  return seed;
}

// Ops that live in libraries of their own.
bool IsElsewhere(const std::string& op) {
  return op == "math.einsum" || op == "math.fused" || op == "nn.attention" || op == "nn.attention_grad";
}

struct Config {
  std::string name;
  testing::OpSizes sizes;
  double masked = 0.2;
  testing::RunNodeOptions run;
  std::string ops;  // those whose names begin so
};

testing::OpSizes
ManyExperts() {  // more than a warp has registers for; choices beyond those that a token holds
  testing::OpSizes s = testing::OpSizes::Tiny();
  s.hidden = 24, s.experts = 530, s.groups = 2, s.tokens = 40, s.k = 11, s.capacity = 2, s.ffn = 3;
  return s;
}

testing::OpSizes SomeExperts() {
  testing::OpSizes s = testing::OpSizes::Tiny();
  s.hidden = 8, s.experts = 200, s.groups = 3, s.tokens = 17, s.k = 6, s.capacity = 1;
  return s;
}

// Rows of several warps, and for rms_norm_dw wider than shared memory.
testing::OpSizes WideRows(int64_t hidden) {
  testing::OpSizes s = testing::OpSizes::Tiny();
  s.batch = 2, s.sequence = 5, s.hidden = hidden, s.experts = 3, s.groups = 2, s.tokens = 4, s.k = 2;
  s.capacity = 2, s.vocab_blocks = 2, s.block_words = 3, s.vocab = 5;
  return s;
}

std::vector<Config> Configs() {
  std::vector<Config> configs;
  configs.reserve(16);
  const auto add = [&](std::string name, testing::OpSizes sizes) {
    configs.push_back({std::move(name), sizes});
    return &configs.back();
  };
  add("Small", testing::OpSizes());
  add("SmallestSizes", testing::OpSizes::Tiny());
  add("OddSizes", testing::OpSizes::Odd());
  add("SomeExperts", SomeExperts());
  add("ManyExperts", ManyExperts());
  add("WideRows", WideRows(2056));
  add("WidestRows", WideRows(12'301))->ops = "nn.rms_norm";
  add("NoTokenIsRouted", testing::OpSizes())->masked = 1;
  add("InPlace", testing::OpSizes())->run.in_place = true;
  add("RaggedRowsSpill", testing::OpSizes())->run.spill_from_row = 3;
  add("Recorded", testing::OpSizes())->run.as_graph = true;
  return configs;
}

class DeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (device::CountDevices(device::DeviceKind::kCuda) == 0)
      GTEST_SKIP() << device::OpenDevice(device::DeviceKind::kCuda, 0).status();
    ASSERT_OK_AND_ASSIGN(device_, device::OpenDevice(device::DeviceKind::kCuda, 0));
    ASSERT_OK_AND_ASSIGN(stream_, device_->NewStream("test"));
    RecordProperty("seed", std::to_string(Seed()));
  }

  // The part of `rank` of the mesh of a case, whose operands are local: CUDA's results against the
  // reference's.
  void Compare(const testing::OpCase& c, const testing::RunNodeOptions& run, double tolerance,
               const Mesh& mesh = Mesh(), FactorAssignment assignment = {}, int64_t rank = 0,
               const std::vector<testing::HostValue>* operands = nullptr) {
    SCOPED_TRACE(::testing::Message() << c.name << " seed " << Seed());
    if (operands == nullptr) operands = &c.operands;
    ASSERT_OK_AND_ASSIGN(const ShardingRule* rule, c.node->Rule());
    assignment.resize(rule->num_factors());
    ASSERT_OK_AND_ASSIGN(const Kernel* reference, Kernels().Lookup(*c.node, Backend::kReference));
    ASSERT_OK_AND_ASSIGN(const Kernel* kernel, Kernels().Lookup(*c.node, Backend::kCuda));
    testing::RunNodeOptions on_host = run;
    on_host.as_graph = false;
    ASSERT_OK_AND_ASSIGN(
        const std::vector<testing::HostValue> want,
        testing::RunNodeOnRank(*c.node, *reference, assignment, mesh, rank, *operands, on_host));
    testing::RunNodeOptions on_device = run;
    on_device.device = device_.get();
    on_device.stream = stream_.get();
    ASSERT_OK_AND_ASSIGN(
        const std::vector<testing::HostValue> got,
        testing::RunNodeOnRank(*c.node, *kernel, assignment, mesh, rank, *operands, on_device));
    for (size_t r = 0; r < want.size(); ++r) {
      EXPECT_LE(testing::RelativeError(got[r], want[r]),
                IsFloat(want[r].dtype) ? ToleranceOf(c, tolerance) : 0)
          << "rank " << rank << " result " << r;
    }
    compared_.insert(c.node->op_name());
    ++comparisons_;
  }

  std::unique_ptr<device::Device> device_;
  std::unique_ptr<device::Stream> stream_;
  std::set<std::string> compared_;
  int comparisons_ = 0;
};

class OwnKernelsTest : public DeviceTest, public ::testing::WithParamInterface<std::tuple<DType, Config>> {};

TEST_P(OwnKernelsTest, AgreesWithReference) {
  const auto& [dtype, config] = GetParam();
  for (const testing::OpCase& c : testing::MakeOpCases(Ops(), {dtype, Seed(), config.sizes, config.masked})) {
    if (!IsElsewhere(c.node->op_name()) && absl::StartsWith(c.node->op_name(), config.ops))
      Compare(c, config.run, Tolerance(dtype));
  }
  for (const OpDef* op : Ops().All()) {
    if (absl::StartsWith(op->name, config.ops) && !absl::StartsWith(op->name, "comm.") &&
        !IsElsewhere(op->name)) {
      EXPECT_TRUE(compared_.count(op->name)) << op->name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, OwnKernelsTest,
                         ::testing::Combine(::testing::Values(DType::kF32, DType::kBF16, DType::kF16),
                                            ::testing::ValuesIn(Configs())),
                         [](const auto& info) {
                           return std::string(DTypeName(std::get<0>(info.param))) +
                                  std::get<1>(info.param).name;
                         });

// Kernels are told offsets of factors that only results have, or that name ids: vocabulary, experts.
TEST_F(DeviceTest, OffsetsAndLocalExtents) {
  const Mesh mesh({{"a", 2}});
  for (const testing::OpCase& c :
       testing::MakeOpCases(Ops(), {DType::kF32, Seed(), testing::OpSizes(), 0.2})) {
    if (IsElsewhere(c.node->op_name())) continue;
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
        Compare(c, {}, Tolerance(DType::kF32), mesh, assignment, rank, &in);
      }
    }
  }
  EXPECT_GT(comparisons_, 150);
}

// So many words that the head takes its tokens in several runs, whose weight gradients add up.
TEST_F(DeviceTest, HeadInSeveralRuns) {
  testing::OpSizes s = testing::OpSizes::Tiny();
  s.sequence = 150, s.hidden = 2, s.block_words = 65'600, s.vocab = 65'590;
  for (const testing::OpCase& c : testing::MakeOpCases(Ops(), {DType::kF32, Seed(), s, 0.2})) {
    if (c.name == "nn.head_stats" || c.name == "nn.head_stats_grad") Compare(c, {}, Tolerance(DType::kF32));
  }
  EXPECT_EQ(comparisons_, 2);
}

// The head's products are dense.
TEST_F(DeviceTest, HeadInTf32WhereItIsAllowed) {
  for (const testing::OpCase& c :
       testing::MakeOpCases(Ops(), {DType::kF32, Seed(), testing::OpSizes(), 0.2})) {
    if (c.name != "nn.head_stats" && c.name != "nn.head_stats_grad") continue;
    SCOPED_TRACE(::testing::Message() << c.name << " seed " << Seed());
    ASSERT_OK_AND_ASSIGN(const Kernel* kernel, Kernels().Lookup(*c.node, Backend::kCuda));
    testing::RunNodeOptions run = {.device = device_.get(), .stream = stream_.get()};
    ASSERT_OK_AND_ASSIGN(const std::vector<testing::HostValue> f32,
                         testing::RunNode(*c.node, *kernel, c.operands, run));
    run.tf32 = true;
    ASSERT_OK_AND_ASSIGN(const std::vector<testing::HostValue> tf32,
                         testing::RunNode(*c.node, *kernel, c.operands, run));
    EXPECT_GT(testing::RelativeError(tf32[0], f32[0]), 1e-6);
    EXPECT_LT(testing::RelativeError(tf32[0], f32[0]), 5e-2);
  }
}

// f32 beside bf16: a gradient that is narrower than its accumulator, a scalar that is wider.
TEST_F(DeviceTest, OperandsOfSeveralDTypes) {
  const std::set<std::string> moves = {"math.permute_blocks", "math.reshape", "math.rotate",
                                       "moe.join_experts", "moe.split_experts"};
  for (const int wide : {0, 1}) {
    for (testing::OpCase& c : testing::MakeOpCases(Ops(), {DType::kBF16, Seed(), testing::OpSizes(), 0.2})) {
      if (IsElsewhere(c.node->op_name()) || moves.count(c.node->op_name())) continue;
      for (int i = wide; i < c.node->num_operands(); i += 2) {
        if (!IsFloat(c.operands[i].dtype)) continue;
        Type type = c.node->operand(i).type();
        type.dtype = c.operands[i].dtype = DType::kF32;
        c.node->operand(i).node->SetType(0, type);
      }
      Compare(c, {}, Tolerance(DType::kBF16));
    }
  }
}

// The same bits on every run, also where blocks meet in counters.
TEST_F(DeviceTest, RunsAgreeToTheBit) {
  for (const testing::OpCase& c : testing::MakeOpCases(Ops(), {DType::kF32, Seed(), SomeExperts(), 0.2})) {
    if (IsElsewhere(c.node->op_name())) continue;
    SCOPED_TRACE(::testing::Message() << c.name << " seed " << Seed());
    ASSERT_OK_AND_ASSIGN(const Kernel* kernel, Kernels().Lookup(*c.node, Backend::kCuda));
    const testing::RunNodeOptions run = {.device = device_.get(), .stream = stream_.get()};
    ASSERT_OK_AND_ASSIGN(const std::vector<testing::HostValue> first,
                         testing::RunNode(*c.node, *kernel, c.operands, run));
    ASSERT_OK_AND_ASSIGN(const std::vector<testing::HostValue> second,
                         testing::RunNode(*c.node, *kernel, c.operands, run));
    for (size_t r = 0; r < first.size(); ++r) EXPECT_EQ(first[r].data, second[r].data) << "result " << r;
  }
}

TEST_F(DeviceTest, NoKernelPassesOverNaN) {
  int64_t looked_at = 0;
  for (const testing::OpCase& c : testing::MakeOpCases(Ops(), {.dtype = DType::kF32, .seed = Seed()})) {
    const absl::StatusOr<const Kernel*> kernel = Kernels().Lookup(*c.node, Backend::kCuda);
    if (!kernel.ok() || IsElsewhere(c.node->op_name())) continue;
    ASSERT_OK_AND_ASSIGN(const Kernel* reference, Kernels().Lookup(*c.node, Backend::kReference));
    const auto run = [&](const std::vector<testing::HostValue>& operands) {
      return testing::RunNode(*c.node, **kernel, operands,
                              {.device = device_.get(), .stream = stream_.get()});
    };
    looked_at += testing::ExpectNaNIsKept(c, *reference, Seed(), run);
  }
  EXPECT_GT(looked_at, 500);
}

}  // namespace
}  // namespace moe::kernels
