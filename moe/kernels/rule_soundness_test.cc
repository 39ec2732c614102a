// Sharding rules against kernels: every assignment of two mesh axes to factors, or to partials that pass
// through, that a rule permits is run on the parts of four ranks and assembled again, and must give the
// result of one device. Plans would not catch an unsound rule; this does, as the mutations show.

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/builder.h"
#include "moe/kernels/kernel.h"
#include "moe/kernels/rounded_operands.h"
#include "moe/testing/op_cases.h"
#include "moe/testing/op_cases_run.h"

namespace moe::kernels {
namespace {

// What an axis does: nothing, shards a factor, or passes the partial of an operand (-1: of all).
struct Choice {
  enum Kind { kNone, kFactor, kPartial } kind = kNone;
  int index = 0;
};

std::string Describe(const ShardingRule& rule, const Choice& c) {
  if (c.kind == Choice::kNone) return "-";
  return c.kind == Choice::kFactor ? rule.factors[c.index] : absl::StrCat("partial of operand ", c.index);
}

bool ShardsRaggedDim(const testing::HostValue& v, const Placement& p) {
  return v.ragged >= 0 && !p.dims[v.ragged].empty();
}

struct Soundness {
  int tried = 0;
  std::string unsound;  // the first unsound assignment
};

class RuleChecker {
 public:
  explicit RuleChecker(uint64_t seed) : rng_(seed) {}

  Soundness Check(const testing::OpCase& c, const Kernel& kernel) {
    const Node& n = *c.node;
    Soundness s;
    const absl::StatusOr<const ShardingRule*> rule = n.Rule();
    const absl::StatusOr<std::vector<int64_t>> extents = FactorExtents(n);
    EXPECT_OK(rule);
    EXPECT_OK(extents);
    const absl::StatusOr<std::vector<testing::HostValue>> want = testing::RunNode(n, kernel, c.operands);
    EXPECT_OK(want);
    if (!rule.ok() || !extents.ok() || !want.ok()) return s;
    std::vector<Choice> choices = {Choice{}};
    for (int f = 0; f < (*rule)->num_factors(); ++f) choices.push_back({Choice::kFactor, f});
    if (n.op().linearity == Linearity::kJointly) choices.push_back({Choice::kPartial, -1});
    for (int i = 0; i < n.num_operands(); ++i) {
      if (n.op().IsLinearIn(i)) choices.push_back({Choice::kPartial, i});
    }
    for (const Choice& a : choices) {
      for (const Choice& b : choices) {
        const bool sound = Try(c, kernel, **rule, *extents, *want, {a, b}, &s.tried);
        if (!sound && s.unsound.empty())
          s.unsound = absl::StrCat("a: ", Describe(**rule, a), ", b: ", Describe(**rule, b));
      }
    }
    return s;
  }

 private:
  bool Try(const testing::OpCase& c, const Kernel& kernel, const ShardingRule& rule,
           const std::vector<int64_t>& extents, const std::vector<testing::HostValue>& want,
           std::array<Choice, 2> axes, int* tried) {
    FactorAssignment assignment(rule.num_factors());
    std::vector<PassedPartial> passed;
    for (AxisId axis = 0; axis < 2; ++axis) {
      if (axes[axis].kind == Choice::kFactor) assignment[axes[axis].index].push_back(axis);
      if (axes[axis].kind == Choice::kPartial) passed.push_back({axis, axes[axis].index});
    }
    const absl::StatusOr<NodePlacements> p = PlaceNode(*c.node, rule, extents, assignment, passed, mesh_);
    if (!p.ok()) return true;  // not permitted
    // The ragged dim has no shards; nothing places an axis on it.
    for (size_t i = 0; i < c.operands.size(); ++i) {
      if (ShardsRaggedDim(c.operands[i], p->operands[i])) return true;
    }
    for (size_t r = 0; r < want.size(); ++r) {
      if (ShardsRaggedDim(want[r], p->results[r])) return true;
    }
    ++*tried;
    std::vector<std::vector<testing::HostValue>> in(4), out(want.size());
    for (size_t i = 0; i < c.operands.size(); ++i) {
      std::vector<testing::HostValue> locals =
          testing::SplitByPlacement(c.operands[i], p->operands[i], mesh_, rng_);
      for (int64_t rank = 0; rank < 4; ++rank) in[rank].push_back(std::move(locals[rank]));
    }
    for (int64_t rank = 0; rank < 4; ++rank) {
      auto results = testing::RunNodeOnRank(*c.node, kernel, assignment, mesh_, rank, in[rank]);
      if (!results.ok()) return false;
      for (size_t r = 0; r < want.size(); ++r) out[r].push_back(std::move((*results)[r]));
    }
    for (size_t r = 0; r < want.size(); ++r) {
      if (!(testing::AssembledError(out[r], p->results[r], want[r], mesh_) <= 1e-9)) return false;
    }
    return true;
  }

  const Mesh mesh_{{{"a", 2}, {"b", 2}}};
  std::mt19937_64 rng_;
};

TEST(RuleSoundnessTest, EveryPermittedAssignmentOfTwoAxes) {
  const uint64_t seed = std::random_device()();
  RuleChecker checker(seed);
  int total = 0;
  for (const testing::OpCase& c : testing::MakeOpCases(Ops(), {DType::kF64, seed})) {
    if (RoundsOperands(*c.node))
      continue;  // parts of a run have other scales; the rule is that of any einsum
    SCOPED_TRACE(::testing::Message() << c.name << " seed " << seed);
    ASSERT_OK_AND_ASSIGN(const Kernel* kernel, Kernels().Lookup(*c.node, Backend::kReference));
    const Soundness s = checker.Check(c, *kernel);
    EXPECT_EQ(s.unsound, "");
    EXPECT_GE(s.tried, 1);
    total += s.tried;
  }
  std::cout << total << " assignments\n";
  EXPECT_GT(total, 1000);
}

// A rule that lies is found out.
struct Mutation {
  std::string op;
  std::function<void(OpDef&)> change;
  KernelFn kernel = nullptr;
};

// Clamps ids to its part of the table, where it should give zeros.
absl::Status EmbedOfClampedIds(KernelContext& c) {
  const int64_t v = c.Extent("v"), h = c.Extent("h");
  for (int64_t i = 0; i < c.in[0].elements(); ++i) {
    const int64_t row = std::min<int64_t>(c.in[0].As<int32_t>()[i], v - 1);
    for (int64_t j = 0; j < h; ++j) c.out[0].As<double>()[i * h + j] = c.in[1].As<double>()[row * h + j];
  }
  return absl::OkStatus();
}

TEST(RuleSoundnessTest, MutatedRulesAreCaught) {
  const Mutation mutations[] = {
      {"math.silu", [](OpDef& op) { op.LinearIn({0}); }},
      {"math.silu_grad",
       [](OpDef& op) {
         op.LinearIn({0, 1});
       }},
      {"math.sum_squares", [](OpDef& op) { op.LinearIn({0}); }},
      {"nn.rms_norm_dx",
       [](OpDef& op) {
         op.LinearIn({0, 2});
       }},
      {"nn.softmax", [](OpDef& op) { op.Rule("b c t e -> b c t e"); }},
      {"math.reduce_max", [](OpDef& op) { op.ReducesWith(Reduction::kSum); }},
      {"moe.slots", [](OpDef& op) { op.Rule("b c t k! -> b c t k!"); }},
      {"nn.attention",
       [](OpDef& op) {
         op.rule_fn = nullptr;
         op.factor_from.clear();  // of a factor that this rule does not have
         op.Rule("b s (k g) d!, b t k d!, b t k d!, s, t -> b s (k g) d!, b s (k g)");
       }},
      {"nn.embed", [](OpDef&) {}, &EmbedOfClampedIds},
      {"moe.combine",
       [](OpDef& op) {
         op.LinearIn({0, 1, 2});
       }},
  };
  const uint64_t seed = std::random_device()();
  for (const Mutation& m : mutations) {
    SCOPED_TRACE(::testing::Message() << m.op << " seed " << seed);
    OpRegistry registry;
    for (const OpDef* op : Ops().All()) {
      OpDef copy = *op;
      if (op->name == m.op) m.change(copy);
      registry.Add(std::move(copy));
    }
    RuleChecker checker(seed);
    bool caught = false;
    for (const testing::OpCase& c : testing::MakeOpCases(registry, {DType::kF64, seed})) {
      if (!c.node->Is(m.op)) continue;
      ASSERT_OK_AND_ASSIGN(const Kernel* kernel, Kernels().Lookup(*c.node, Backend::kReference));
      Kernel mutated = *kernel;
      if (m.kernel != nullptr) mutated.fn = m.kernel;
      caught = caught || !checker.Check(c, mutated).unsound.empty();
    }
    EXPECT_TRUE(caught);
  }
}

}  // namespace
}  // namespace moe::kernels
