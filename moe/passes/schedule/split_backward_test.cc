#include "moe/passes/schedule/split_backward.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "moe/base/status_matchers.h"
#include "moe/ir/state.h"
#include "moe/ir/text.h"
#include "moe/ir/verifier.h"
#include "moe/passes/schedule/schedule_table.h"

namespace moe::passes {
namespace {

// y = x w v, so that dw = x^T (dy v^T) and dx = (dy v^T) w^T share dh = dy v^T, and dv = h^T dy reads the
// forward's h.
constexpr char kModule[] = R"(
module @m mesh<pp=2>
state @w : f32[4,4] {kind = "parameter", stages = [1]}
state @v : f32[4,4] {kind = "parameter", stages = [1]}
state @grad.w : f32[4,4] {kind = "gradient", of = "w", stages = [1]}
state @grad.v : f32[4,4] {kind = "gradient", of = "v", stages = [1]}

func @forward1(%x: f32[2,4] {kind = "boundary", name = "act.0", peer = 0},
               %w: f32[4,4] {kind = "state", name = "w"}) {
  %h = math.einsum(%x, %w) {eq = "a b, b c -> a c"} : f32[2,4]
  return %h {kind = "residual", name = "h"}
}

func @backward1(%x: f32[2,4] {kind = "boundary", name = "act.0", peer = 0},
                %w: f32[4,4] {kind = "state", name = "w"},
                %v: f32[4,4] {kind = "state", name = "v"},
                %gw: f32[4,4] {kind = "state", name = "grad.w"},
                %gv: f32[4,4] {kind = "state", name = "grad.v"},
                %h: f32[2,4] {kind = "residual", name = "h"},
                %dy: f32[2,4] {kind = "boundary", name = "grad.1", peer = 2}) {
  %dv = math.einsum(%h, %dy) {eq = "a b, a c -> b c"} : f32[4,4]
  %gv2 = optim.accumulate(%gv, %dv) : f32[4,4]
  %dh = math.einsum(%dy, %v) {eq = "a c, b c -> a b"} : f32[2,4]
  %dw = math.einsum(%x, %dh) {eq = "a b, a c -> b c"} : f32[4,4]
  %gw2 = optim.accumulate(%gw, %dw) : f32[4,4]
  %dx = math.einsum(%dh, %w) {eq = "a c, b c -> a b"} : f32[2,4]
  return %gv2 {kind = "state", name = "grad.v"}, %gw2 {kind = "state", name = "grad.w"},
         %dx {kind = "boundary", name = "grad.0", peer = 0}
}
)";

std::set<std::string> Names(const Function& f) {
  std::set<std::string> out;
  for (const auto& n : f.body()) out.insert(n->result_name());
  return out;
}

std::set<std::string> Bindings(const Function& f, bool results) {
  std::set<std::string> out;
  const auto add = [&](const Binding& b) { out.insert(std::string(BindingKindName(b.kind)) + ":" + b.name); };
  for (const Node* a : f.args()) {
    if (!results) add(a->binding);
  }
  for (int i = 0; results && i < f.num_results(); ++i) add(f.result_binding(i));
  return out;
}

Program Parse(const char* last) {
  Program p;
  absl::StatusOr<std::unique_ptr<Module>> m = ParseModule(kModule);
  EXPECT_TRUE(m.ok()) << m.status();
  p.module = *std::move(m);
  p.schedule.microbatches = 1;
  p.schedule.chunk_stage = {0, 1};
  p.schedule.table = *ParseScheduleTable(last, "test");
  return p;
}

TEST(SplitBackwardTest, OnlyWhatAccumulatorsAloneNeedIsOfTheWeightGradient) {
  Program p = Parse("F0.0, B0.0\nF1.0, I1.0, W1.0");
  ASSERT_OK_AND_ASSIGN(const bool changed, SplitBackward(p, PassContext()));
  EXPECT_TRUE(changed);
  ASSERT_OK(Verify(*p.module));
  EXPECT_EQ(p.module->Find("backward1"), nullptr);
  const Function& input = *p.module->Find("input_grad1");
  const Function& weight = *p.module->Find("weight_grad1");
  using Set = std::set<std::string>;
  EXPECT_EQ(Names(input), (Set{"dh", "dx"}));
  EXPECT_EQ(Names(weight), (Set{"dv", "gv2", "dw", "gw2"}));
  EXPECT_EQ(Bindings(input, false), (Set{"state:w", "state:v", "boundary:grad.1"}));
  EXPECT_EQ(Bindings(input, true), (Set{"boundary:grad.0", "weight_residual:dh"}));
  EXPECT_EQ(Bindings(weight, false), (Set{"boundary:act.0", "state:grad.w", "state:grad.v", "residual:h",
                                          "boundary:grad.1", "weight_residual:dh"}));
  EXPECT_EQ(Bindings(weight, true), (Set{"state:grad.v", "state:grad.w"}));
}

TEST(SplitBackwardTest, RecomputationStaysWithTheInputGradient) {
  Program p = Parse("F0.0, B0.0\nF1.0, I1.0, W1.0");
  for (const auto& n : p.module->Find("backward1")->body()) {
    if (n->result_name() == "dw") n->provenance.pass = "checkpoint";
  }
  ASSERT_OK(SplitBackward(p, PassContext()));
  EXPECT_EQ(Names(*p.module->Find("input_grad1")), (std::set<std::string>{"dh", "dw", "dx"}));
  EXPECT_EQ(Bindings(*p.module->Find("weight_grad1"), false).count("weight_residual:dw"), 1u);
}

TEST(SplitBackwardTest, WholeBackwardsStayWhole) {
  Program p = Parse("F0.0, B0.0\nF1.0, B1.0");
  ASSERT_OK_AND_ASSIGN(const bool changed, SplitBackward(p, PassContext()));
  EXPECT_FALSE(changed);
}

}  // namespace
}  // namespace moe::passes
