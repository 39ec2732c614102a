#include "moe/passes/expert_slots.h"

#include "moe/base/status_matchers.h"
#include "moe/testing/pass_test.h"

namespace moe::passes {
namespace {

constexpr char kModule[] = R"(
module @moe
state @w : f32[3, 4, 5] {kind = "parameter", class = "expert", init = "normal"}
state @grad.w : f32[3, 4, 5] {kind = "gradient", of = "w"}
state @adam.m.w : f32[3, 4, 5] {kind = "moment", of = "w"}
state @adam.v.w : f32[3, 4, 5] {kind = "moment", of = "w"}
func @step(%x: f32[2, 1, 8, 4], %p: f32[2, 1, 8, 3], %mask: f32[2, 1, 8],
           %w: f32[3, 4, 5] {kind = "state", name = "w"}, %gw: f32[3, 4, 5] {kind = "state", name = "grad.w"}) {
  %top, %e = moe.top_k(%p, %mask) {k = 2} : f32[2, 1, 8, 2], s32[2, 1, 8, 2] at "layers.0.moe"
  %s = moe.slots(%e) {capacity = 6, experts = 3} : s32[2, 1, 8, 2] at "layers.0.moe"
  %d = moe.dispatch(%x, %e, %s) {experts = 3, slots = 6} : f32[3, 2, 1, 6, 4] at "layers.0.moe"
  %h = math.einsum(%d, %w) {eq = "e b c p h, e h f -> e b c p f"} : f32[3, 2, 1, 6, 5] at "layers.0.moe"
  %n = moe.count(%e) {experts = 3} : s32[3] at "layers.0.moe"
  %y = moe.combine(%h, %top, %e, %s) : f32[2, 1, 8, 5] at "layers.0.moe"
backward:
  %do = moe.combine_do(%y, %top, %e, %s) {experts = 3, slots = 6} : f32[3, 2, 1, 6, 5] at "layers.0.moe"
  %dw = math.einsum(%d, %do) {eq = "e b c p h, e b c p f -> e h f"} : f32[3, 4, 5] at "layers.0.moe"
  %gw2 = optim.accumulate(%gw, %dw) : f32[3, 4, 5] at "layers.0.moe"
  return %y, %n, %gw2 {kind = "state", name = "grad.w"}
}
func @update(%w: f32[3, 4, 5] {kind = "state", name = "w"}, %g: f32[3, 4, 5] {kind = "state", name = "grad.w"},
             %m: f32[3, 4, 5] {kind = "state", name = "adam.m.w"}, %v: f32[3, 4, 5] {kind = "state", name = "adam.v.w"}) {
update:
  %lr = math.constant() {dtype = "f32", value = 0.25} : f32[]
  %sq = math.sum_squares(%g) : f32[]
  %norm, %factor, %finite = optim.clip(%sq) {max_norm = 1.0} : f32[], f32[], f32[]
  %w2, %m2, %v2 = optim.adamw(%w, %g, %m, %v, %factor, %finite, %lr, %lr, %lr) {beta1 = 0.9, beta2 = 0.9, eps = 1e-8, weight_decay = 0.0} : f32[3, 4, 5], f32[3, 4, 5], f32[3, 4, 5]
  return %w2 {kind = "state", name = "w"}, %m2 {kind = "state", name = "adam.m.w"}, %v2 {kind = "state", name = "adam.v.w"}
}
)";

class ExpertSlotsTest : public testing::PassTest {
 protected:
  static PassContext With(const std::string& words) {
    PassContext context;
    const absl::StatusOr<strategy::Strategy> s = strategy::ParseStrategy(words);
    EXPECT_OK(s);
    if (s.ok()) context.strategy = *s;
    return context;
  }
  static std::string Checked(absl::string_view checks) { return std::string(kModule) + std::string(checks); }
};

TEST_F(ExpertSlotsTest, AnEmptySlotTakesNothingAndCostsNoSum) {
  ExpectRewrite(StoreByExpertSlots, Checked(R"(
    // CHECK: state @layers.0.moe.expert_map : s32[4] {experts = 3, kind = "expert_map", replicas = false, slots = [0, 1, 2, -1]}
    // CHECK: func @step
    // CHECK: %e = moe.top_k
    // CHECK: moe.slots(%e) {capacity = 6, experts = 3}
    // CHECK: %layers.0.moe.replica.expert_slot, %layers.0.moe.replica.slot = moe.choose_replicas(%e, %s, %layers.0.moe.expert_map)
    // CHECK: moe.dispatch(%x, %layers.0.moe.replica.expert_slot, %layers.0.moe.replica.slot) {experts = 4, slots = 6} : f32[4, 2, 1, 6, 4]
    // CHECK: math.einsum(%d, %w) {{.*}} : f32[4, 2, 1, 6, 5]
    // CHECK: moe.count(%e) {experts = 3} : s32[3]
    // CHECK: moe.combine_do(%y, %top, %layers.0.moe.replica.expert_slot, %layers.0.moe.replica.slot) {experts = 4, slots = 6}
    // CHECK: optim.accumulate(%gw, %dw) : f32[4, 4, 5]
    // CHECK: func @update
    // CHECK-NOT: moe.sum_replicas
    // CHECK: optim.adamw(%w, %g, {{.*}} : f32[4, 4, 5]
    // CHECK: return
  )"),
                With("ep=2 expert_slots=4"));
}

TEST_F(ExpertSlotsTest, ReplicasHaveOneGradientThatTheNormCountsOnce) {
  ExpectRewrite(StoreByExpertSlots, Checked(R"(
    // CHECK: replicas = true, slots = [0, 1, 2, 0]
    // CHECK: func @update
    // CHECK: %grad.w.by_expert = moe.sum_replicas(%g, %layers.0.moe.expert_map) {experts = 3{{.*}} : f32[3, 4, 5]
    // CHECK: math.sum_squares(%grad.w.by_expert)
    // CHECK: %grad.w.by_slot = moe.copy_to_replicas(%grad.w.by_expert, %layers.0.moe.expert_map) {expert_slots = 4} : f32[4, 4, 5]
    // CHECK: optim.adamw(%w, %grad.w.by_slot, %m, %v
  )"),
                With("ep=2 expert_map=0:1:2:0"));
}

TEST_F(ExpertSlotsTest, WithoutAMapAndWithTheIdentityNothingChanges) {
  ExpectUnchanged(StoreByExpertSlots, kModule, With("dp=2"));
  ExpectUnchanged(StoreByExpertSlots, kModule, With("ep=3 expert_slots=3"));
  ExpectUnchanged(StoreByExpertSlots, kModule, With("expert_map=0:1:2"));
}

TEST_F(ExpertSlotsTest, RefusesWhatDoesNotFit) {
  const auto refused = [&](const std::string& strategy, const std::vector<std::string>& parts) {
    ExpectPassError(StoreByExpertSlots, kModule, absl::StatusCode::kInvalidArgument, parts, With(strategy));
  };
  refused("ep=2 expert_slots=5", {"5 expert slots do not divide over ep = 2", "6"});
  refused("expert_slots=2", {"2 expert slots for 3 experts"});
  refused("expert_map=0:1:1", {"expert 2 has no slot"});
  refused("expert_map=0:1:2:3", {"slot 3 holds 3"});
  refused("expert_slots=4 expert_map=0:1:2", {"3 entries for 4 expert slots"});
  ExpectPassError(StoreByExpertSlots, "module @m\nfunc @step(%x: f32[2]) {\n  return %x\n}\n",
                  absl::StatusCode::kInvalidArgument, {"no experts"}, With("expert_slots=4"));
}

TEST(ExpertMapTest, ExpertsAreSpreadEvenly) {
  strategy::Strategy s;
  s.ep = 4, s.expert_slots = 8;
  ASSERT_OK_AND_ASSIGN(const std::vector<int64_t> map, strategy::ExpertMapOf(s, 5));
  EXPECT_EQ(map, (std::vector<int64_t>{0, 1, -1, 2, 3, -1, 4, -1}));
}

}  // namespace
}  // namespace moe::passes
