// Matrix products, attention and fused chains of Backend::kCuda against the reference kernels, on fresh
// random inputs: on a GPU, or on the emulated device.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status_matchers.h"
#include "moe/device/device.h"
#include "moe/ir/builder.h"
#include "moe/kernels/cuda/cudnn_api.h"
#include "moe/kernels/kernel.h"
#include "moe/testing/op_cases.h"
#include "moe/testing/op_cases_run.h"

namespace moe::kernels {
namespace {

const std::set<std::string>& OpsHere() {
  static const auto& ops =
      *new std::set<std::string>{"math.einsum", "math.fused", "nn.attention", "nn.attention_grad"};
  return ops;
}

double Tolerance(DType dtype) { return dtype == DType::kF32 ? 1e-5 : 1e-2; }

uint64_t Seed() {
  static const uint64_t seed = std::random_device()();
  return seed;
}

// A node of its own, with random operands.
class NodeBuilder {
 public:
  NodeBuilder() {
    case_.module = std::make_unique<Module>("case");
    function_ = case_.module->AddFunction("f");
  }
  Value Real(DType dtype, Dims dims) {
    return Add(dtype, std::move(dims), [] { return normal(); });
  }
  Value Ints(Dims dims, std::function<int64_t(int64_t)> at) {
    int64_t i = 0;
    return Add(DType::kS32, std::move(dims), [&] { return static_cast<double>(at(i++)); });
  }
  testing::OpCase Op(absl::string_view op, std::vector<Value> operands, Attributes attributes = {}) {
    Builder b(function_, Ops());
    absl::StatusOr<Node*> node = b.CreateNode(op, std::move(operands), std::move(attributes));
    EXPECT_OK(node);
    case_.node = *node;
    case_.name = std::string(op);
    return std::move(case_);
  }

 private:
  static double normal() {
    static auto& rng = *new std::mt19937_64(Seed());
    return std::normal_distribution<double>()(rng);
  }
  Value Add(DType dtype, Dims dims, const std::function<double()>& next) {
    testing::HostValue v;
    v.dtype = dtype;
    v.dims = dims;
    int64_t n = 1;
    for (const int64_t d : dims) n *= d;
    std::vector<char> stored(ByteSize(dtype));
    for (int64_t i = 0; i < n; ++i) {
      StoreElement(dtype, stored.data(), 0, next());
      v.data.push_back(LoadElement(dtype, stored.data(), 0));
    }
    Value arg = function_->AddArg(absl::StrCat("x", case_.operands.size()), Type(dtype, dims));
    case_.operands.push_back(std::move(v));
    return arg;
  }
  testing::OpCase case_;
  Function* function_;
};

class ProductKernelsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (device::CountDevices(device::DeviceKind::kCuda) == 0)
      GTEST_SKIP() << device::OpenDevice(device::DeviceKind::kCuda, 0).status();
    ASSERT_OK_AND_ASSIGN(device_, device::OpenDevice(device::DeviceKind::kCuda, 0));
    ASSERT_OK_AND_ASSIGN(stream_, device_->NewStream("test"));
    RecordProperty("seed", std::to_string(Seed()));
  }

  void Compare(const testing::OpCase& c, testing::RunNodeOptions run, double tolerance) {
    SCOPED_TRACE(::testing::Message() << c.name << " seed " << Seed());
    ASSERT_OK_AND_ASSIGN(const Kernel* reference, Kernels().Lookup(*c.node, Backend::kReference));
    ASSERT_OK_AND_ASSIGN(const Kernel* kernel, Kernels().Lookup(*c.node, Backend::kCuda));
    ASSERT_OK_AND_ASSIGN(const std::vector<testing::HostValue> want,
                         testing::RunNode(*c.node, *reference, c.operands, run));
    run.device = device_.get();
    run.stream = stream_.get();
    ASSERT_OK_AND_ASSIGN(const std::vector<testing::HostValue> got,
                         testing::RunNode(*c.node, *kernel, c.operands, run));
    for (size_t r = 0; r < want.size(); ++r)
      EXPECT_LE(testing::RelativeError(got[r], want[r]), tolerance) << "result " << r;
    compared_.insert(c.node->op_name());
  }

  std::unique_ptr<device::Device> device_;
  std::unique_ptr<device::Stream> stream_;
  std::set<std::string> compared_;
};

struct Config {
  std::string name;
  testing::OpSizes sizes;
  double masked = 0.2;
  testing::RunNodeOptions run;
};

// Matrices beyond one tile in every direction, more than one sequence of tiles, attention beyond one block.
testing::OpSizes BeyondATile() {
  testing::OpSizes s = testing::OpSizes::Tiny();
  s.batch = 2, s.sequence = 70, s.hidden = 144, s.kv_heads = 1, s.groups_per_kv = 2, s.head_dim = 72;
  s.experts = 3, s.groups = 2, s.tokens = 150, s.k = 2, s.capacity = 40, s.ffn = 136;
  return s;
}

std::vector<Config> Configs() {
  return {{"Small", testing::OpSizes()},
          {"SmallestSizes", testing::OpSizes::Tiny()},
          {"OddSizes", testing::OpSizes::Odd()},
          {"BeyondATile", BeyondATile()},
          {"NoTokenIsRouted", testing::OpSizes(), 1.0},
          {"InPlace", testing::OpSizes(), 0.2, {.in_place = true}},
          {"RaggedRowsSpill", testing::OpSizes(), 0.2, {.spill_from_row = 3}}};
}

class OpCasesTest : public ProductKernelsTest,
                    public ::testing::WithParamInterface<std::tuple<DType, Config>> {};

TEST_P(OpCasesTest, AgreeWithReference) {
  const auto& [dtype, config] = GetParam();
  if (dtype == DType::kF16 && config.name == "OddSizes") GTEST_SKIP() << "as in bf16, and slow to emulate";
  for (const testing::OpCase& c : testing::MakeOpCases(Ops(), {dtype, Seed(), config.sizes, config.masked})) {
    if (OpsHere().count(c.node->op_name()) > 0) Compare(c, config.run, Tolerance(dtype));
  }
  EXPECT_EQ(compared_, OpsHere());
}

INSTANTIATE_TEST_SUITE_P(All, OpCasesTest,
                         ::testing::Combine(::testing::Values(DType::kF32, DType::kBF16, DType::kF16),
                                            ::testing::ValuesIn(Configs())),
                         [](const auto& info) {
                           return std::string(DTypeName(std::get<0>(info.param))) +
                                  std::get<1>(info.param).name;
                         });

// Factors in any order and any of the three terms: batches with gaps, transposed results, two reduced sides.
TEST_F(ProductKernelsTest, RandomEinsums) {
  std::mt19937_64 rng(Seed());
  for (int round = 0; round < 120; ++round) {
    const int count = 2 + rng() % 5;
    std::vector<std::string> terms[3];
    std::vector<int64_t> extent;
    for (int f = 0; f < count; ++f) {
      const int in = std::vector<int>{3, 5, 6, 7, 3, 5, 6, 1}[rng() % 8];  // bits: a, b, result
      extent.push_back(1 + rng() % 9);
      for (int t = 0; t < 3; ++t) {
        if (in >> t & 1) terms[t].push_back(std::string(1, static_cast<char>('a' + f)));
      }
    }
    for (std::vector<std::string>& term : terms) std::shuffle(term.begin(), term.end(), rng);
    if (terms[0].empty() || terms[1].empty()) continue;
    const std::string eq = absl::StrCat(absl::StrJoin(terms[0], " "), ", ", absl::StrJoin(terms[1], " "),
                                        " -> ", absl::StrJoin(terms[2], " "));
    SCOPED_TRACE(::testing::Message() << eq << " extents " << absl::StrJoin(extent, " "));
    const DType dtype = round % 2 ? DType::kF32 : DType::kBF16;
    NodeBuilder b;
    std::vector<Value> operands;
    for (int t = 0; t < 2; ++t) {
      Dims dims;
      for (const std::string& f : terms[t]) dims.push_back(extent[f[0] - 'a']);
      operands.push_back(b.Real(dtype, dims));
    }
    Compare(b.Op("math.einsum", operands, {{"eq", eq}}), {}, Tolerance(dtype));
  }
}

// f32 beside bf16, and results wider than operands.
TEST_F(ProductKernelsTest, OperandsOfSeveralDTypes) {
  for (const int wide : {0, 1}) {
    for (testing::OpCase& c : testing::MakeOpCases(Ops(), {DType::kBF16, Seed(), testing::OpSizes(), 0.2})) {
      if (OpsHere().count(c.node->op_name()) == 0) continue;
      for (int i = wide; i < c.node->num_operands(); i += 2) {
        if (!IsFloat(c.operands[i].dtype)) continue;
        Type type = c.node->operand(i).type();
        type.dtype = c.operands[i].dtype = DType::kF32;
        c.node->operand(i).node->SetType(0, type);
      }
      Compare(c, {}, Tolerance(DType::kBF16));
    }
  }
  for (const std::string eq : {"b s h, h n -> b s n", "b s h, h n -> b n s"}) {
    NodeBuilder b;
    const Value x = b.Real(DType::kBF16, {3, 7, 40}), w = b.Real(DType::kBF16, {40, 24});
    const testing::OpCase c = b.Op("math.einsum", {x, w}, {{"eq", eq}, {"dtype", std::string("f32")}});
    ASSERT_EQ(c.node->type(0).dtype, DType::kF32);
    Compare(c, {}, 1e-5);  // nothing is rounded to bf16
  }
}

// 1 + 2^-13 is 1 in TF32, whose mantissa has 10 bits, and the product of ones a whole number.
TEST_F(ProductKernelsTest, Tf32WhereItIsAllowed) {
  for (const bool tf32 : {false, true}) {
    NodeBuilder b;
    const Value x = b.Real(DType::kF32, {64, 64}), w = b.Real(DType::kF32, {64, 64});
    testing::OpCase c = b.Op("math.einsum", {x, w}, {{"eq", std::string("m k, k n -> m n")}});
    for (double& v : c.operands[0].data) v = 1 + 1.0 / 8192;
    for (double& v : c.operands[1].data) v = 1;
    ASSERT_OK_AND_ASSIGN(const Kernel* kernel, Kernels().Lookup(*c.node, Backend::kCuda));
    ASSERT_OK_AND_ASSIGN(const std::vector<testing::HostValue> y,
                         testing::RunNode(*c.node, *kernel, c.operands,
                                          {.device = device_.get(), .stream = stream_.get(), .tf32 = tf32}));
    for (const double v : y[0].data) EXPECT_EQ(v, tf32 ? 64 : 64 + 64.0 / 8192);
  }
}

TEST_F(ProductKernelsTest, RunsAgreeToTheBit) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const testing::OpCase& c : testing::MakeOpCases(Ops(), {dtype, Seed(), testing::OpSizes(), 0.2})) {
      if (OpsHere().count(c.node->op_name()) == 0) continue;
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
}

// Rows beyond the arena go through the workspace in several parts, in which sums over rows go on.
TEST_F(ProductKernelsTest, RoundedRowsThatSpillGoInParts) {
  int cases = 0;
  for (const testing::OpCase& c : testing::MakeOpCases(Ops(), {DType::kBF16, Seed(), BeyondATile(), 0.2})) {
    if (c.node->op_name() != "math.einsum" || c.node->StringOr("multiply", "").empty()) continue;
    if (c.operands[0].ragged < 0) continue;
    ++cases;
    Compare(c, {.spill_from_row = 150}, c.node->type().dtype == DType::kF32 ? 1e-5 : 1e-2);
  }
  EXPECT_EQ(cases, 4);
}

struct AttentionSizes {
  int64_t s, t, d;
  int64_t first_query;  // its position; keys are at 0, 1, ...
};

// Every width of tile, queries and keys of different numbers, queries that see nothing.
TEST_F(ProductKernelsTest, AttentionOfManyShapes) {
  for (const AttentionSizes& z : {AttentionSizes{65, 65, 32, 0},
                                  {33, 130, 64, 97},
                                  {130, 20, 24, -40},
                                  {20, 70, 128, 5},
                                  {17, 40, 136, 23},
                                  {40, 33, 256, 0},
                                  {5, 70, 16, -9},
                                  {1, 129, 8, 128}}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << " s " << z.s << " t " << z.t << " d " << z.d
                                        << " from " << z.first_query);
      const int64_t kv_heads = z.d > 64 ? 1 : 2, heads = 2 * kv_heads;
      const auto operands = [&](NodeBuilder& b) {
        std::vector<Value> x = {b.Real(dtype, {1, z.s, heads, z.d}), b.Real(dtype, {1, z.t, kv_heads, z.d}),
                                b.Real(dtype, {1, z.t, kv_heads, z.d})};
        x.push_back(b.Ints({z.s}, [&](int64_t i) { return z.first_query + i; }));
        x.push_back(b.Ints({z.t}, [](int64_t i) { return i; }));
        return x;
      };
      NodeBuilder forward;
      std::vector<Value> x = operands(forward);
      const testing::OpCase attention = forward.Op("nn.attention", x);
      Compare(attention, {}, Tolerance(dtype));
      // The gradient of what the forward gives.
      ASSERT_OK_AND_ASSIGN(const Kernel* reference, Kernels().Lookup(*attention.node, Backend::kReference));
      ASSERT_OK_AND_ASSIGN(const std::vector<testing::HostValue> y,
                           testing::RunNode(*attention.node, *reference, attention.operands));
      NodeBuilder backward;
      x = operands(backward);
      x.push_back(backward.Real(dtype, {1, z.s, heads, z.d}));
      x.push_back(backward.Real(DType::kF32, {1, z.s, heads}));
      x.push_back(backward.Real(dtype, {1, z.s, heads, z.d}));
      testing::OpCase grad = backward.Op("nn.attention_grad", x);
      for (int i = 0; i < 5; ++i) grad.operands[i] = attention.operands[i];
      grad.operands[5] = y[0];
      grad.operands[6] = y[1];
      Compare(grad, {}, Tolerance(dtype));
    }
  }
}

struct CudnnSizes {
  int64_t batch, blocks, s, kv_heads, per_kv, d;
};

// Through cuDNN's graphs: layouts, heads that share keys, samples, blocks, a sequence of one.
TEST_F(ProductKernelsTest, AttentionByCudnn) {
  if (const auto cudnn = LoadCudnn(); !cudnn.ok()) GTEST_SKIP() << cudnn.status();
  for (const CudnnSizes& z : {CudnnSizes{2, 1, 70, 2, 3, 16},
                              {1, 2, 33, 1, 1, 64},
                              {3, 1, 1, 2, 1, 8},
                              {1, 1, 130, 1, 2, 72},
                              {2, 3, 16, 4, 2, 16}}) {
    for (const DType dtype : {DType::kBF16, DType::kF16}) {
      SCOPED_TRACE(::testing::Message()
                   << DTypeName(dtype) << " batch " << z.batch << " blocks " << z.blocks << " s " << z.s
                   << " heads " << z.kv_heads << " x " << z.per_kv << " d " << z.d);
      const int64_t s = z.blocks * z.s, heads = z.kv_heads * z.per_kv;
      Attributes by = {{"library", std::string("cudnn")}};
      if (z.blocks > 1) by["blocks"] = z.blocks;
      const auto operands = [&](NodeBuilder& b) {
        std::vector<Value> x = {b.Real(dtype, {z.batch, s, heads, z.d}),
                                b.Real(dtype, {z.batch, s, z.kv_heads, z.d}),
                                b.Real(dtype, {z.batch, s, z.kv_heads, z.d})};
        x.push_back(b.Ints({s}, [](int64_t i) { return 3 * i + 5; }));
        x.push_back(x.back());
        return x;
      };
      NodeBuilder forward;
      testing::OpCase attention = forward.Op("nn.attention", operands(forward), by);
      attention.operands.push_back(attention.operands[3]);
      Compare(attention, {}, Tolerance(dtype));
      // The gradient of what the forward gives.
      ASSERT_OK_AND_ASSIGN(const Kernel* reference, Kernels().Lookup(*attention.node, Backend::kReference));
      ASSERT_OK_AND_ASSIGN(const std::vector<testing::HostValue> y,
                           testing::RunNode(*attention.node, *reference, attention.operands));
      NodeBuilder backward;
      std::vector<Value> x = operands(backward);
      x.push_back(backward.Real(dtype, {z.batch, s, heads, z.d}));
      x.push_back(backward.Real(DType::kF32, {z.batch, s, heads}));
      x.push_back(backward.Real(dtype, {z.batch, s, heads, z.d}));
      testing::OpCase grad = backward.Op("nn.attention_grad", x, by);
      const testing::HostValue dy = grad.operands.back();
      grad.operands = attention.operands;
      grad.operands.insert(grad.operands.end(), {y[0], y[1], dy});
      Compare(grad, {}, Tolerance(dtype));
    }
  }
}

// What cuDNN does not take is said when a node is bound.
TEST_F(ProductKernelsTest, WhatCudnnDoesNotTakeIsRefused) {
  if (const auto cudnn = LoadCudnn(); !cudnn.ok()) GTEST_SKIP() << cudnn.status();
  for (const auto& [dtype, d, why] :
       {std::tuple{DType::kF32, 16, "in f32; it takes bf16 and f16"}, {DType::kBF16, 12, "heads of 12"}}) {
    NodeBuilder b;
    const Value q = b.Real(dtype, {1, 4, 1, d}), p = b.Ints({4}, [](int64_t i) { return i; });
    testing::OpCase c = b.Op("nn.attention", {q, q, q, p, p}, {{"library", std::string("cudnn")}});
    c.operands = {c.operands[0], c.operands[0], c.operands[0], c.operands[1], c.operands[1]};
    ASSERT_OK_AND_ASSIGN(const Kernel* kernel, Kernels().Lookup(*c.node, Backend::kCuda));
    ExpectError(
        testing::RunNode(*c.node, *kernel, c.operands, {.device = device_.get(), .stream = stream_.get()}),
        absl::StatusCode::kUnimplemented, why);
  }
}

TEST_F(ProductKernelsTest, HeadsTooWideAreRefused) {
  NodeBuilder b;
  const Value q = b.Real(DType::kF32, {1, 2, 1, 264}), k = b.Real(DType::kF32, {1, 2, 1, 264}),
              v = b.Real(DType::kF32, {1, 2, 1, 264}), qp = b.Ints({2}, [](int64_t i) { return i; }),
              kp = b.Ints({2}, [](int64_t i) { return i; });
  const testing::OpCase c = b.Op("nn.attention", {q, k, v, qp, kp});
  ASSERT_OK_AND_ASSIGN(const Kernel* kernel, Kernels().Lookup(*c.node, Backend::kCuda));
  ExpectError(
      testing::RunNode(*c.node, *kernel, c.operands, {.device = device_.get(), .stream = stream_.get()}),
      absl::StatusCode::kUnimplemented, "at most 256 elements, not 264");
}

}  // namespace
}  // namespace moe::kernels
