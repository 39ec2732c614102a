#include "moe/inspect/report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "moe/base/quantities.h"
#include "moe/base/status_matchers.h"
#include "moe/cost/step_runs.h"
#include "moe/inspect/buffers.h"
#include "moe/inspect/diff.h"
#include "moe/inspect/model_explorer.h"
#include "moe/inspect/timeline.h"
#include "moe/ir/text.h"
#include "moe/testing/compile_program.h"

namespace moe::inspect {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// One MoE block of a placed forward, dispatched over ep = dp and with experts cut by etp = tp.
constexpr char kBlock[] = R"(
module @block mesh<b=4, a=2; dp=b, tp=a, ep=b, etp=a>
func @forward0(%x: f32[8@dp, 1, 128, 128] {kind = "batch", name = "x"},
               %layers.0.moe.w_gate: f32[8@ep, 128, 192@etp] {kind = "state", name = "layers.0.moe.w_gate"},
               %expert: s32[8@dp, 1, 128, 2] {kind = "batch", name = "expert"},
               %slot: s32[8@dp, 1, 128, 2] {kind = "batch", name = "slot"}) {
  %layers.0.moe.d = moe.dispatch(%x, %expert, %slot) {experts = 8, slots = 40} place<b=dp> : f32[8, 8@dp, 1, 40, 128] at "layers.0.moe"
  %layers.0.moe.d.moved = comm.all_to_all(%layers.0.moe.d) {axes = [ep]} @comm : f32[8@ep, 8, 1, 40, 128] at "layers.0.moe" by "insert-collectives: batch@dp -> experts@ep, for %d"
  %layers.0.moe.gate = math.einsum(%layers.0.moe.d.moved, %layers.0.moe.w_gate) {eq = "e b c p h, e h f -> e b c p f"} place<e=ep, f=etp> : f32[8@ep, 8, 1, 40, 192@etp] at "layers.0.moe"
  return %layers.0.moe.gate {kind = "residual", name = "layers.0.moe.gate"}
}
)";

Program ParseProgram(absl::string_view text) {
  Program p;
  absl::StatusOr<std::unique_ptr<Module>> module = ParseModule(text);
  EXPECT_TRUE(module.ok()) << module.status();
  if (module.ok()) p.module = *std::move(module);
  return p;
}

Program CompileSmall(const std::string& words) {
  const model::ModelConfig config = *model::LoadModelConfig("testdata/models/small_test.textproto");
  const strategy::Strategy strategy = *strategy::ParseStrategy(words);
  return *testing::CompileProgram(config, strategy, {.global_batch = 8 * strategy.microbatches});
}

void ExpectNarrow(const std::string& text) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) EXPECT_LE(line.size(), 100u) << line;
}

TEST(ReportTest, SaysPlacementLocalShapeBytesAndReason) {
  const Program p = ParseProgram(kBlock);
  ASSERT_OK_AND_ASSIGN(const std::string text, ReportText(p, {.layer = 0}));
  ExpectNarrow(text);
  EXPECT_THAT(text, HasSubstr("ranks 0-7"));
  EXPECT_THAT(text, HasSubstr("layers.0.moe"));
  // Two of eight batch rows a rank: 8 x 2 x 1 x 40 x 128 floats.
  EXPECT_THAT(
      text,
      HasSubstr("%d     f32[8,8@dp,1,40,128]      8x2x1x40x128   320 KiB  dispatch(%x, %expert, %slot)"));
  // Three quarters of it go to other ranks.
  EXPECT_THAT(text, HasSubstr(">> all_to_all over ep, 240 KiB per rank -> %d.moved  f32[8@ep,8,1,40,128]"));
  EXPECT_THAT(text, HasSubstr("inserted by insert-collectives: batch@dp -> experts@ep, for %d"));
  EXPECT_THAT(text, HasSubstr("einsum(%d.moved, %w_gate)"));
}

TEST(ReportTest, FiltersAndTheirErrors) {
  const Program p = CompileSmall("pp=2 dp=2 tp=2 ep=2 microbatches=2");
  ASSERT_OK_AND_ASSIGN(const std::string layer, ReportText(p, {.layer = 1}));
  ExpectNarrow(layer);
  EXPECT_THAT(layer, HasSubstr("layers.1."));
  EXPECT_THAT(layer, Not(HasSubstr("\nlayers.0.")));
  ASSERT_OK_AND_ASSIGN(const std::string function, ReportText(p, {.function = "update1"}));
  EXPECT_THAT(function, HasSubstr("adamw("));
  EXPECT_THAT(function, Not(HasSubstr("@forward")));

  ExpectError(ReportText(p, {.stage = 2}), absl::StatusCode::kNotFound, "no stage 2", "0 to 1");
  ExpectError(ReportText(p, {.layer = 77}), absl::StatusCode::kNotFound, "no layer 77");
  ExpectError(ReportText(p, {.function = "f"}), absl::StatusCode::kNotFound, "no function @f", "forward0");
}

TEST(ReportTest, OverviewAddsUp) {
  const Program p = CompileSmall("pp=2 dp=2 tp=2 ep=2 microbatches=2");
  ASSERT_OK_AND_ASSIGN(const std::string text, ReportText(p, {.nodes = true}));
  ExpectNarrow(text);
  EXPECT_THAT(text, HasSubstr("stage 0 of 2   ranks 0-3   embedding, layer"));
  EXPECT_THAT(text, HasSubstr("head"));
  EXPECT_THAT(text, HasSubstr("all_reduce"));
  EXPECT_THAT(text, HasSubstr("send act.0"));
  EXPECT_THAT(text, HasSubstr("bubble"));
  EXPECT_THAT(text, HasSubstr("\naxes      "));
  EXPECT_THAT(text, HasSubstr("nodes  each run  each step\n"));
  for (int s = 0; s < 2; ++s) {
    int64_t sum = 0;
    for (const MemoryShare& share : MemoryShares(p, s)) sum += share.bytes;
    EXPECT_EQ(sum, p.memory.stages[s].peak_bytes());
    EXPECT_THAT(text, HasSubstr(absl::StrCat("(", CountText(sum), " bytes)")));
    // Every collective is in exactly one total.
    const StageView view = ViewStage(p, s);
    double of_uses = 0, of_totals = 0;
    for (const CollectiveTotal& total : TotalCollectives(p, view)) {
      EXPECT_DOUBLE_EQ(total.across_per_step() * total.bytes, total.across * total.bytes_per_step());
    }
    for (const CollectiveUse& use : CollectivesOf(p, view)) of_uses += use.bytes;
    for (const CollectiveTotal& total : TotalCollectives(p, view)) of_totals += total.bytes;
    EXPECT_GT(of_uses, 0);
    EXPECT_NEAR(of_uses, of_totals, 1e-6 * of_uses);
    const std::string sent = BytesText(cost::SentPerStep(p, s).bytes);
    EXPECT_THAT(CollectivesText(p, view), HasSubstr(absl::StrCat("sent by each rank: ", sent, " a step")));
  }
}

TEST(ReportTest, SaysWhatAxesStandFor) {
  EXPECT_EQ(AxesMeaning(Mesh({{"b", 2}, {"c", 4}, {"a", 2}},
                             {{"dp", {0, 1}}, {"edp", {0}}, {"ep", {1}}, {"tp", {2}}, {"etp", {2}}})),
            "b of 2 is edp; c of 4 is ep; a of 2 is tp, etp; dp is b.c");
  EXPECT_EQ(AxesMeaning(Mesh()), "");
}

TEST(ReportTest, ShowsWhichSlotsHoldWhichExperts) {
  const Program p = CompileSmall("dp=2 ep=2 expert_map=0:1:2:3:0:-1");
  ASSERT_OK_AND_ASSIGN(const std::string text, ReportText(p));
  EXPECT_THAT(text, HasSubstr("\nexperts   4 in 6 slots: 0 1 2 | 3 0 -\n"));
  ASSERT_OK_AND_ASSIGN(const std::string json, ReportJson(p));
  const auto parsed = nlohmann::json::parse(json, nullptr, false);
  ASSERT_EQ(parsed["expert_maps"].size(), 1u);
  EXPECT_EQ(parsed["expert_maps"].begin()->at("slots").size(), 6u);
  ASSERT_OK_AND_ASSIGN(const std::string plain, ReportText(CompileSmall("dp=2 ep=2")));
  EXPECT_THAT(plain, Not(HasSubstr("\nexperts ")));
}

TEST(ReportTest, JsonHoldsTheSame) {
  const Program p = CompileSmall("pp=2 dp=2 microbatches=2");
  ASSERT_OK_AND_ASSIGN(const std::string text, ReportJson(p));
  const auto json = nlohmann::json::parse(text, nullptr, false);
  ASSERT_FALSE(json.is_discarded());
  ASSERT_EQ(json["stages"].size(), 2u);
  EXPECT_EQ(json["stages"][1]["first_rank"], 2);
  EXPECT_EQ(json["stages"][0]["memory"]["peak_bytes"], p.memory.stages[0].peak_bytes());
  EXPECT_GT(json["stages"][0]["functions"][0]["nodes"].size(), 0u);
}

TEST(ModelExplorerTest, EdgesMeetNodes) {
  const Program p = CompileSmall("dp=2 tp=2 ep=2");
  const auto json = nlohmann::json::parse(ModelExplorerJson(p), nullptr, false);
  ASSERT_FALSE(json.is_discarded());
  ASSERT_GT(json["graphs"].size(), 0u);
  bool layered = false;
  for (const auto& graph : json["graphs"]) {
    std::set<std::string> ids;
    for (const auto& node : graph["nodes"]) EXPECT_TRUE(ids.insert(node["id"]).second);
    for (const auto& node : graph["nodes"]) {
      layered |= node["namespace"] == "stage 0/forward/layer 1/moe";
      for (const auto& edge : node["incomingEdges"]) {
        EXPECT_EQ(ids.count(edge["sourceNodeId"]), 1u);
        EXPECT_TRUE(edge["sourceNodeOutputId"].is_string());
      }
    }
  }
  EXPECT_TRUE(layered);
}

TEST(DiffTest, ShowsWhatDiffersAndWhatDoesNot) {
  const Program a = CompileSmall("dp=2 tp=2 microbatches=2"), b = CompileSmall("pp=2 dp=2 microbatches=4");
  const std::string text = DiffText({"a", &a, {}}, {"b", &b, {}});
  EXPECT_THAT(text, HasSubstr("bubble 0.0%"));
  const std::string bubble = ShareText(EstimatedTimeline(b, cost::Target()).bubble);
  EXPECT_THAT(text, HasSubstr(absl::StrCat("4 microbatches, bubble ", bubble)));
  EXPECT_THAT(text, HasSubstr("gone"));  // tp's collectives
  EXPECT_THAT(text, HasSubstr("send"));
  const std::string same = DiffText({"a", &a, {}}, {"a", &a, {}});
  EXPECT_THAT(same, HasSubstr("mesh   same"));
  EXPECT_THAT(same, Not(HasSubstr("\n    B ")));
  EXPECT_THAT(same, Not(HasSubstr("%+")));
}

}  // namespace
}  // namespace moe::inspect
