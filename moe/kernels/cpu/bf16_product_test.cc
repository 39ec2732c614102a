// bf16 products: oneDNN's where this CPU has them, and the way of every einsum to them by a stand-in where
// not.
#include "moe/kernels/cpu/bf16_product.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/device/convert.h"
#include "moe/kernels/kernel.h"
#include "moe/testing/op_cases.h"
#include "moe/testing/op_cases_run.h"

namespace moe::kernels {
namespace {

constexpr double kTolerance = 1e-2;  // ||out - ref|| / ||ref|| of bf16

uint64_t Seed() {
  static const uint64_t seed = std::random_device()();
  return seed;
}

double At(DType dtype, const void* x, int64_t i) { return LoadElement(dtype, x, i); }

// The product by loops, in f32.
void Naive(DType in, DType out, const MatrixProduct& p, const void* a, const void* b, void* c) {
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      float sum = p.accumulate ? static_cast<float>(At(out, c, i * p.ldc + j)) : 0;
      for (int64_t k = 0; k < p.k; ++k) {
        sum += static_cast<float>(At(in, a, p.trans_a ? k * p.lda + i : i * p.lda + k) *
                                  At(in, b, p.trans_b ? j * p.ldb + k : k * p.ldb + j));
      }
      StoreElement(out, c, i * p.ldc + j, sum);
    }
  }
}

// Calls fn(product, a, b, c, want) for matrices that are transposed or not, with rows that have room behind
// them or none, and results that are added to or written.
template <typename Fn>
void ForShapes(DType in, DType out, Fn fn) {
  std::mt19937_64 rng(Seed());
  std::normal_distribution<double> normal;
  for (const int64_t pad : {0, 3}) {
    for (const bool accumulate : {false, true}) {
      if (accumulate && out == DType::kBF16) continue;
      for (int transposed = 0; transposed < 4; ++transposed) {
        MatrixProduct p = {
            .m = 7, .n = 16, .k = 33, .trans_a = transposed % 2 == 1, .trans_b = transposed > 1};
        p.lda = (p.trans_a ? p.m : p.k) + pad;
        p.ldb = (p.trans_b ? p.k : p.n) + pad;
        p.ldc = p.n + pad;
        p.accumulate = accumulate;
        p.wide = out == DType::kF32;
        const auto random = [&](DType dtype, int64_t n) {
          std::vector<char> x(n * ByteSize(dtype));
          for (int64_t i = 0; i < n; ++i) StoreElement(dtype, x.data(), i, normal(rng));
          return x;
        };
        const std::vector<char> a = random(in, 40 * 40), b = random(in, 40 * 40);
        std::vector<char> c = random(out, 40 * 40), want = c;
        Naive(in, out, p, a.data(), b.data(), want.data());
        SCOPED_TRACE(absl::StrCat("seed ", Seed(), " transposed ", transposed, " pad ", pad));
        if (!fn(p, a.data(), b.data(), c.data())) return;
        double difference = 0, norm = 0;
        for (int64_t i = 0; i < 40 * 40; ++i) {
          const double x = At(out, c.data(), i), y = At(out, want.data(), i);
          difference += (x - y) * (x - y), norm += y * y;
        }
        EXPECT_LT(std::sqrt(difference / norm), in == DType::kF32 ? 1e-6 : kTolerance);
      }
    }
  }
}

// Strides, transposition and sums as oneDNN is asked for them: in f32, which every CPU has.
TEST(LibraryProduct, F32) {
  ForShapes(DType::kF32, DType::kF32, [](const MatrixProduct& p, const void* a, const void* b, void* c) {
    EXPECT_TRUE(LibraryProduct(DType::kF32, DType::kF32, p, a, b, c));
    return true;
  });
}

TEST(LibraryProduct, BF16) {
  bool has = true;
  for (const DType out : {DType::kF32, DType::kBF16}) {
    ForShapes(DType::kBF16, out, [&](const MatrixProduct& p, const void* a, const void* b, void* c) {
      return has = LibraryProduct(DType::kBF16, out, p, a, b, c);
    });
  }
  if (ChosenBf16Product() != nullptr) {
    EXPECT_TRUE(has) << "chosen, and refused";
  }
  if (!has) GTEST_SKIP() << "oneDNN has no bf16 products on this CPU";
}

std::atomic<int> calls = 0;
bool StandIn(const MatrixProduct& p, const Bf16* a, const Bf16* b, void* c) {
  ++calls;
  Naive(DType::kBF16, p.wide ? DType::kF32 : DType::kBF16, p, a, b, c);
  return true;
}
bool Refuses(const MatrixProduct&, const Bf16*, const Bf16*, void*) {
  ++calls;
  return false;
}

// Einsums of bf16, dense and ragged, with results in bf16 and in f32, against the reference.
void CompareEinsums(int* cases) {
  *cases = 0;
  for (const testing::OpSizes& sizes : {testing::OpSizes(), testing::OpSizes::Tiny()}) {
    for (testing::OpCase& c : testing::MakeOpCases(Ops(), {DType::kBF16, Seed(), sizes, 0.2})) {
      if (!absl::StartsWith(c.name, "math.einsum")) continue;
      for (const DType out : {DType::kBF16, DType::kF32}) {
        SCOPED_TRACE(absl::StrCat(c.name, " to ", DTypeName(out), " seed ", Seed()));
        Type type = c.node->type();
        type.dtype = out;
        c.node->SetType(0, type);
        c.node->Set("dtype", std::string(DTypeName(out)));
        ASSERT_OK_AND_ASSIGN(const Kernel* reference, Kernels().Lookup(*c.node, Backend::kReference));
        ASSERT_OK_AND_ASSIGN(const Kernel* cpu, Kernels().Lookup(*c.node, Backend::kCpu));
        ASSERT_OK_AND_ASSIGN(const std::vector<testing::HostValue> want,
                             testing::RunNode(*c.node, *reference, c.operands));
        ASSERT_OK_AND_ASSIGN(const std::vector<testing::HostValue> got,
                             testing::RunNode(*c.node, *cpu, c.operands));
        EXPECT_LT(testing::RelativeError(got[0], want[0]), kTolerance);
        ++*cases;
      }
    }
  }
}

class EinsumTest : public ::testing::Test {
 protected:
  ~EinsumTest() override { SetBf16Product(was_); }
  const Bf16Product was_ = ChosenBf16Product();
};

TEST_F(EinsumTest, AsThisCpuDoesIt) {
  int cases;
  CompareEinsums(&cases);
  std::cout << cases << " einsums, " << (was_ == nullptr ? "by way of f32" : "by oneDNN in bf16") << "\n";
}

TEST_F(EinsumTest, ByProductsOfBF16) {
  SetBf16Product(&StandIn);
  calls = 0;
  int cases;
  CompareEinsums(&cases);
  EXPECT_GT(calls, cases / 2);
}

TEST_F(EinsumTest, WhatTheProductRefusesGoesByF32) {
  SetBf16Product(&Refuses);
  calls = 0;
  int cases;
  CompareEinsums(&cases);
  EXPECT_GT(calls, cases / 4);
}

}  // namespace
}  // namespace moe::kernels
