#include "moe/passes/certify/certify.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/state.h"
#include "moe/model/transformer.h"
#include "moe/plan/compile.h"
#include "moe/testing/plan_edits.h"

namespace moe::passes {
namespace {

const plan::Plan& SmallPlan() {
  static const plan::Plan& plan = *[] {
    auto config = model::LoadModelConfig("testdata/models/small_test.textproto");
    strategy::Strategy strategy = *strategy::ParseStrategy("pp=2 dp=2 tp=2 ep=2 zero=1 microbatches=4");
    auto module = model::BuildModel(*config, {.global_batch = 16, .microbatches = 4});
    auto compiled = plan::Compile(*std::move(module), strategy);
    EXPECT_TRUE(compiled.ok()) << compiled.status();
    return new plan::Plan(std::move(compiled->plan));
  }();
  return plan;
}

std::vector<Action>& Actions(plan::Plan& plan, int stage) {
  return plan.program.schedule.actions["train_step"][stage];
}

size_t Find(plan::Plan& plan, int stage, const std::string& action) {
  const std::vector<Action>& all = Actions(plan, stage);
  for (size_t i = 0; i < all.size(); ++i) {
    if (ActionToString(all[i]) == action) return i;
  }
  ADD_FAILURE() << "no action " << action << " on stage " << stage;
  return 0;
}

template <typename... Parts>
void ExpectRefused(const plan::Plan& plan, Parts... parts) {
  ExpectError(Certify(plan.program), absl::StatusCode::kFailedPrecondition, parts...);
}

TEST(Certify, AFreshPlanPasses) {
  ASSERT_OK_AND_ASSIGN(const Certificate c, Certify(SmallPlan().program));
  EXPECT_EQ(c.ranks, 8);
  EXPECT_THAT(c.ToString(),
              ::testing::HasSubstr("on 8 ranks: no cyclic wait, each action once, every node covered"));
}

TEST(Certify, LostMicrobatch) {
  plan::Plan plan = plan::ClonePlan(SmallPlan());
  std::vector<Action>& a = Actions(plan, 1);
  a.erase(a.begin() + Find(plan, 1, "B1.2"));
  ExpectRefused(plan, "B1.2", "microbatch 2 of chunk 1", "stage 1 (ranks 4-7)", "runs 0 times");
}

TEST(Certify, DoubleUpdate) {
  plan::Plan plan = plan::ClonePlan(SmallPlan());
  std::vector<Action>& a = Actions(plan, 0);
  const size_t i = Find(plan, 0, "update");
  a.insert(a.begin() + i, Action(a[i]));
  ExpectRefused(plan, "stage 0 (ranks 0-3)", "update");
}

TEST(Certify, Deadlock) {
  // Stage 0 waits for the gradient before it sends what that is the gradient of.
  plan::Plan plan = plan::ClonePlan(SmallPlan());
  std::vector<Action>& a = Actions(plan, 0);
  const size_t recv = Find(plan, 0, "recv grad.0 mb0 <- stage 1"),
               send = Find(plan, 0, "send act.0 mb0 -> stage 1");
  ASSERT_LT(send, recv);
  std::rotate(a.begin() + send, a.begin() + recv, a.begin() + recv + 1);
  ExpectRefused(plan, "stands still", "stage 0 (ranks 0-3)", "recv grad.0 mb0", "stage 1 (ranks 4-7)",
                "recv act.0 mb0");
}

TEST(Certify, TransfersInDifferentOrder) {
  plan::Plan plan = plan::ClonePlan(SmallPlan());
  std::vector<Action>& a = Actions(plan, 0);
  std::swap(a[Find(plan, 0, "send act.0 mb0 -> stage 1")].microbatch,
            a[Find(plan, 0, "send act.0 mb1 -> stage 1")].microbatch);
  ExpectRefused(plan, "send act.0 mb1");
}

TEST(Certify, ASlotStillInUse) {
  plan::Plan plan = plan::ClonePlan(SmallPlan());
  std::vector<Action>& a = Actions(plan, 0);
  const size_t i = Find(plan, 0, "F0.1");
  a[i].residual_slot = a[Find(plan, 0, "F0.0")].residual_slot;
  ExpectRefused(plan, "F0.1", "overwrites slot", "residuals.0", "microbatch 0");
}

TEST(Certify, MismatchedReductionOverStages) {
  plan::Plan plan = plan::ClonePlan(SmallPlan());
  Node* reduce = plan.program.module->Find("update1")->NodesOf("comm.stage_reduce").back();
  reduce->Set("reduction", std::string("max"));
  ExpectRefused(plan, "stage_reduce", "max", "sum");
}

TEST(Certify, MismatchedCollective) {
  plan::Plan plan = plan::ClonePlan(SmallPlan());
  for (const auto& f : plan.program.module->functions()) {
    for (Node* n : f->NodesOf("comm.all_reduce")) {
      Axes fewer{n->axes()};
      fewer.list.pop_back();
      n->Set("axes", fewer);
      const absl::StatusOr<Certificate> c = Certify(plan.program);
      ASSERT_FALSE(c.ok());
      EXPECT_THAT(std::string(c.status().message()), ::testing::HasSubstr("all_reduce"));
      return;
    }
  }
}

TEST(Certify, LostGradientAndLostNode) {
  plan::Plan plan = plan::ClonePlan(SmallPlan());
  Function* f = plan.program.module->Find("backward0");
  for (int r = 0; r < f->num_results(); ++r) {
    if (f->result_binding(r).name == "grad.embedding") f->RemoveResult(r);
  }
  ExpectRefused(plan, "nothing accumulates", "grad.embedding");

  plan = plan::ClonePlan(SmallPlan());
  plan.program.inventory.push_back({"math.add", "layers.9.x", {1}, ""});
  ExpectRefused(plan, "%layers.9.x", "is in no chunk");
}

// A plan that trains nothing is none, however well it runs.
TEST(Certify, ParametersWantUpdates) {
  plan::Plan plan = plan::ClonePlan(SmallPlan());
  for (const auto& s : plan.program.module->states()) {
    if (AttrString(s->attributes, "of") == "embedding" && AttrString(s->attributes, "kind") == "gradient") {
      s->attributes["of"] = std::string("another");
    }
  }
  ExpectRefused(plan, "the parameter @embedding has no gradient to be updated by");

  plan = plan::ClonePlan(SmallPlan());
  Function* update = plan.program.module->Find("update0");
  for (int r = 0; r < update->num_results(); ++r) {
    if (update->result_binding(r).name == "embedding") update->RemoveResult(r);
  }
  ExpectRefused(plan, "the parameter @embedding is updated 0 times on stage 0");
}

TEST(Certify, OverlappingBuffers) {
  plan::Plan plan = plan::ClonePlan(SmallPlan());
  FunctionMemory& m = plan.program.memory.functions["backward1"];
  // Two operands of one node on the same bytes.
  for (const Node* n : plan.program.module->Find("backward1")->Nodes()) {
    if (n->num_operands() != 2) continue;
    BufferRef &x = m.values.at(n->operand(0).name()), &y = m.values.at(n->operand(1).name());
    if (n->operand(0) == n->operand(1) || x.space != Space::kFrame || y.space != Space::kFrame) continue;
    x.offset = y.offset;
    ExpectRefused(plan, "@backward1", "shares bytes of the frame");
    return;
  }
  FAIL() << "no node with two operands in the frame";
}

// An edit that is not refused must be harmless; these are the kinds that can be.
TEST(Certify, RandomEditsAreRefusedOrHarmless) {
  int refused = 0, accepted = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    plan::Plan plan = plan::ClonePlan(SmallPlan());
    const std::string what = testing::RandomEdit(&plan, seed);
    if (what.empty()) continue;
    const absl::StatusOr<Certificate> c = Certify(plan.program);
    refused += !c.ok();
    if (!c.ok()) continue;
    ++accepted;
    const bool may = absl::StrContains(what, "swapped") || absl::StrContains(what, "moved") ||
                     absl::StrContains(what, "boundary slot") || absl::StrContains(what, "residual slot") ||
                     absl::StrContains(what, "no longer waits") || absl::StrContains(what, "(residual");
    EXPECT_TRUE(may) << "seed " << seed << ": " << what;
  }
  EXPECT_GT(refused, 60);
  EXPECT_LT(accepted, refused);
}

}  // namespace
}  // namespace moe::passes
