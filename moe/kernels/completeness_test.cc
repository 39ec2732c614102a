// Walks the registry: every op has what an op must have, and every gradient is the derivative.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/cost/node_cost.h"
#include "moe/ir/builder.h"
#include "moe/kernels/kernel.h"
#include "moe/kernels/ops_page.h"
#include "moe/kernels/rounded_operands.h"
#include "moe/testing/op_cases.h"
#include "moe/testing/op_cases_run.h"

namespace moe::kernels {
namespace {

bool IsComm(const OpDef& op) { return absl::StartsWith(op.name, "comm."); }

TEST(CompletenessTest, EveryOpIsDeclaredWhole) {
  for (const OpDef* op : Ops().All()) {
    SCOPED_TRACE(op->name);
    EXPECT_FALSE(op->doc.empty());
    EXPECT_FALSE(op->rule_text.empty() && !op->rule_fn && !op->elementwise) << "no sharding rule";
    EXPECT_NE(op->gradient != nullptr, op->no_gradient) << "a gradient, or an explicit NoGradient()";
    EXPECT_FALSE(op->result_names.empty());
  }
}

// By its sample nodes: inference, rule, cost and kernels in every dtype.
TEST(CompletenessTest, EveryOpHasKernels) {
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kF16}) {
    std::set<std::string> seen;
    for (const testing::OpCase& c : testing::MakeOpCases(Ops(), {dtype})) {
      SCOPED_TRACE(::testing::Message() << c.name << " " << DTypeName(dtype));
      seen.insert(c.node->op_name());
      EXPECT_TRUE(absl::StartsWith(c.name, c.node->op_name()));
      ASSERT_OK_AND_ASSIGN(const std::vector<Type> types, InferTypes(*c.node));
      EXPECT_EQ(types.size(), c.node->num_results());
      EXPECT_GT(cost::NodeFlops(*c.node, Mesh()), 0);
      for (const Backend backend : {Backend::kReference, Backend::kCpu, Backend::kCuda}) {
        if (backend == Backend::kCuda && dtype == DType::kF64) continue;  // not offered there
        EXPECT_OK(Kernels().Lookup(*c.node, backend).status());
      }
    }
    for (const OpDef* op : Ops().All()) {
      EXPECT_TRUE(IsComm(*op) || seen.count(op->name)) << op->name << " has no sample node";
    }
  }
  std::cout << SupportTable(Ops(), Kernels());
}

testing::HostValue RandomLike(const testing::HostValue& v, std::mt19937_64& rng) {
  std::normal_distribution<double> normal;
  testing::HostValue r = v;
  for (double& x : r.data) x = normal(rng);
  return r;
}

double Inner(const testing::HostValue& a, const testing::HostValue& b) {
  double sum = 0;
  for (size_t i = 0; i < a.data.size(); ++i) sum += a.data[i] * b.data[i];
  return sum;
}

bool IsDifferentiable(const Node& n, int result) {
  const std::vector<int>& no = n.op().nodiff_results;
  return IsFloat(n.type(result).dtype) && std::find(no.begin(), no.end(), result) == no.end();
}

class GradientTest {
 public:
  GradientTest(testing::OpCase& c, uint64_t seed) : c_(c), rng_(seed) {}

  void Check() {
    Node* n = c_.node;
    Function* f = n->function();
    ASSERT_OK_AND_ASSIGN(kernel_, Kernels().Lookup(*n, Backend::kReference));
    ASSERT_OK_AND_ASSIGN(results_, testing::RunNode(*n, *kernel_, c_.operands));
    // Random dy as further arguments, and the op's own gradient nodes.
    std::map<Value, testing::HostValue> values;
    std::vector<Value> dys(n->num_results());
    for (int i = 0; i < n->num_operands(); ++i) values[n->operand(i)] = c_.operands[i];
    dys_.resize(n->num_results());
    for (int r = 0; r < n->num_results(); ++r) {
      if (!IsDifferentiable(*n, r)) continue;
      dys_[r] = RandomLike(results_[r], rng_);
      dys[r] = f->AddArg(absl::StrCat("dy", r), n->type(r));
      values[dys[r]] = dys_[r];
    }
    std::vector<Value> dxs(n->num_operands());
    Builder b(f);
    ASSERT_OK(n->op().gradient(n, dys, b, &dxs));
    ASSERT_OK(testing::RunFunction(*f, Kernels(), Backend::kReference, &values));
    bool any = false;
    for (int i = 0; i < n->num_operands(); ++i) {
      if (!dxs[i]) continue;
      any = true;
      EXPECT_EQ(dxs[i].type().dims, n->operand(i).type().dims);
      ASSERT_EQ(values.at(dxs[i]).data.size(), c_.operands[i].data.size());
      for (int direction = 0; direction < 4; ++direction) CheckDirection(i, values.at(dxs[i]));
    }
    EXPECT_TRUE(any || !IsFloat(n->operand(0).type().dtype)) << "no operand gets a gradient";
  }

 private:
  // The objective <dy, y> where operand i has moved by `step` along `direction`.
  double Objective(int i, const testing::HostValue& direction, double step) {
    std::vector<testing::HostValue> in = c_.operands;
    for (size_t j = 0; j < in[i].data.size(); ++j) in[i].data[j] += step * direction.data[j];
    const absl::StatusOr<std::vector<testing::HostValue>> out = testing::RunNode(*c_.node, *kernel_, in);
    EXPECT_OK(out);
    std::vector<testing::HostValue> y = *out;
    if (c_.node->Is("nn.head_stats")) {
      // The maximum is a shift without gradient: sums are compared relative to the maximum before the step.
      for (size_t j = 0; j < y[1].data.size(); ++j)
        y[1].data[j] *= std::exp(y[0].data[j] - results_[0].data[j]);
    }
    double sum = 0;
    for (size_t r = 0; r < y.size(); ++r) {
      if (!dys_[r].data.empty()) sum += Inner(dys_[r], y[r]);
    }
    return sum;
  }

  void CheckDirection(int i, const testing::HostValue& gradient) {
    const testing::HostValue direction = RandomLike(c_.operands[i], rng_);
    // Richardson extrapolation of central differences: the error is of order step^4.
    const double step = 1e-3;
    auto central = [&](double h) {
      return (Objective(i, direction, h) - Objective(i, direction, -h)) / (2 * h);
    };
    const double numeric = (4 * central(step / 2) - central(step)) / 3;
    double norm = 0;
    for (double x : gradient.data) norm += x * x;
    EXPECT_NEAR(Inner(gradient, direction), numeric, 1e-6 * std::max(1.0, std::sqrt(norm)))
        << "operand " << i;
  }

  testing::OpCase& c_;
  std::mt19937_64 rng_;
  const Kernel* kernel_ = nullptr;
  std::vector<testing::HostValue> results_, dys_;
};

TEST(CompletenessTest, GradientsAreDerivatives) {
  const uint64_t seed = std::random_device()();
  std::set<std::string> checked;
  for (testing::OpCase& c : testing::MakeOpCases(Ops(), {DType::kF64, seed})) {
    // Where probabilities are equal, any step changes the choice; what is rounded moves in steps.
    if (!c.node->op().gradient || absl::EndsWith(c.name, "/ties") || RoundsOperands(*c.node)) continue;
    SCOPED_TRACE(::testing::Message() << c.name << " seed " << seed);
    checked.insert(c.node->op_name());
    GradientTest(c, seed).Check();
  }
  for (const OpDef* op : Ops().All()) EXPECT_TRUE(!op->gradient || checked.count(op->name)) << op->name;
}

}  // namespace
}  // namespace moe::kernels
