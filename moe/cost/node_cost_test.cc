#include "moe/cost/node_cost.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/cost/targets.h"
#include "moe/ir/text.h"

namespace moe::cost {
namespace {

TEST(NodeCost, LocalFlopsAndRingBytes) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> m, ParseModule(R"(
    module @m mesh<tp=4>
    func @f(%x: f32[8,16], %w: f32[16,32@tp]) {
      %y = math.einsum(%x, %w) {eq = "b k, k n -> b n"} place<n=tp> : f32[8,32@tp]
      %z = comm.all_gather(%y) {axes = [tp]} : f32[8,32]
      return %z
    })"));
  const std::vector<Node*> nodes = m->Find("f")->Nodes();
  EXPECT_EQ(NodeFlops(*nodes[0], m->mesh()), 2.0 * 8 * 16 * 8);  // a quarter of the columns
  EXPECT_EQ(NodeBytes(*nodes[0], m->mesh()), 4.0 * (8 * 16 + 16 * 8 + 8 * 8));
  const CommCost cost = CommunicationCost(*nodes[1], m->mesh());
  EXPECT_EQ(cost.bytes, 0.75 * 8 * 32 * 4);
  EXPECT_EQ(cost.launches, 1);
  Target t;
  t.flops = 1;  // compute bound
  EXPECT_EQ(NodeSeconds(*nodes[0], m->mesh(), t), 2.0 * 8 * 16 * 8);
  EXPECT_GT(NodeSeconds(*nodes[1], m->mesh(), t), t.link_latency_seconds);
}

// What routes tokens copies and adds rows: it has no product of tokens, experts and hidden.
TEST(NodeCost, RoutingCostsWhatItTouches) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> m, ParseModule(R"(
    module @m mesh<ep=2>
    func @f(%ids: s32[4,16], %table: f32[1000,32], %e: s32[4,1,16,2], %s: s32[4,1,16,2], %p: f32[4,1,16,2]) {
      %x = nn.embed(%ids, %table) : f32[4,16,32]
      %t = math.reshape(%x) {eq = "b (c t) h -> b c t h", extents = ["c=1"]} : f32[4,1,16,32]
      %n = moe.count(%e) {experts = 8} : s32[8]
      %d = moe.dispatch(%t, %e, %s) {experts = 8, slots = 5} place<e=ep> : f32[8@ep,4,1,5,32]
      %a = math.fused(%d) {program = ["t0 = silu x0", "t1 = mul t0 x0"]} place<a0=ep> : f32[8@ep,4,1,5,32]
      %y = moe.combine(%a, %p, %e, %s) place<e=ep> : f32[4,1,16,32] partial(ep)
      return %n, %y
    })"));
  const Mesh& mesh = m->mesh();
  std::map<std::string, const Node*> node;
  for (const Node* n : m->Find("f")->Nodes()) node[n->op_name()] = n;
  const double rows = 4 * 16 * 32, slots = 8 / 2 * 4 * 5 * 32;  // elements of tokens, and of a rank's slots
  EXPECT_EQ(NodeFlops(*node["nn.embed"], mesh), rows);
  EXPECT_EQ(NodeBytes(*node["nn.embed"], mesh), 4 * (4 * 16 + 2 * rows));  // the rows, not the table
  EXPECT_EQ(NodeFlops(*node["math.reshape"], mesh), rows);
  EXPECT_EQ(NodeFlops(*node["moe.count"], mesh), 4 * 16 * 2);
  EXPECT_EQ(NodeFlops(*node["moe.dispatch"], mesh), slots);
  EXPECT_EQ(NodeFlops(*node["math.fused"], mesh), (4 + 1) * slots);  // as math.silu and math.mul
  EXPECT_EQ(NodeFlops(*node["moe.combine"], mesh), 2 * slots);
}

TEST(NodeCost, ProductsOfE4M3HaveARateOfTheirOwn) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> m, ParseModule(R"(
    module @m
    func @f(%x: bf16[8,16], %w: bf16[16,32]) {
      %y = math.einsum(%x, %w) {eq = "b k, k n -> b n", multiply = "f8e4m3"} : bf16[8,32]
      return %y
    })"));
  Target t;
  t.flops = 1, t.f8_flops = 2;
  EXPECT_EQ(NodeSeconds(*m->Find("f")->Nodes()[0], m->mesh(), t), 8 * 16 * 32);
}

// Four ranks in two nodes: b crosses, a does not.
TEST(NodeCost, BytesThatLeaveANode) {
  const Mesh mesh({{"b", 2}, {"a", 2}}, {{"node", {1}}});
  Target t;
  t.link_bytes_per_second = 100, t.link_latency_seconds = 1;
  t.node_bytes_per_second = 10, t.node_latency_seconds = 3;
  const auto cost = [&](StepKind kind, AxisList axes) {
    ConversionStep step{kind, {}};
    for (AxisId x : axes) step.moves.push_back({x});
    return CostOfStep(step, 800, mesh, t);
  };
  const StepCost inside = cost(StepKind::kAllToAll, {1});
  EXPECT_EQ(inside.sent.bytes, 400);
  EXPECT_EQ(inside.sent.across, 0);
  EXPECT_EQ(inside.seconds, 1 + 400 / 100.0);
  // One peer inside, two outside, a quarter of the value each.
  const StepCost all = cost(StepKind::kAllToAll, {0, 1});
  EXPECT_EQ(all.sent.bytes, 600);
  EXPECT_EQ(all.sent.across, 400);
  EXPECT_EQ(all.seconds, 1 + 2 * 3 + 200 / 100.0 + 400 / 10.0);
  // A ring is as slow as its slowest hop; one of the two ranks of a node sends to the other node.
  const StepCost ring = cost(StepKind::kAllReduce, {0, 1});
  EXPECT_EQ(ring.sent.bytes, 2 * 600);
  EXPECT_EQ(ring.sent.across, 600);
  EXPECT_EQ(ring.seconds, 6 * 3 + 1200 / 10.0);
  EXPECT_EQ(cost(StepKind::kReduceScatter, {1}).bytes_after, 400);
  EXPECT_EQ(cost(StepKind::kAllGather, {0}).bytes_after, 1600);
}

// Stages are on different nodes where there are several; what they exchange goes over the link between them.
TEST(NodeCost, StagesReduceOverTheirLink) {
  for (const bool several : {false, true}) {
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> m,
                         ParseModule(absl::StrCat("module @m mesh<pp=4, a=2", several ? "; node=a" : "", R"(>
      func @f(%x: f32[100]) {
        %y = comm.stage_reduce(%x) {stages = [0, 3], reduction = "sum"} : f32[100]
        return %y
      })")));
    Target t;
    t.link_bytes_per_second = 100, t.link_latency_seconds = 1;
    t.node_bytes_per_second = 10, t.node_latency_seconds = 3;
    const Node& n = *m->Find("f")->Nodes()[0];
    const CommCost cost = CommunicationCost(n, m->mesh());
    EXPECT_EQ(cost.bytes, 400);
    EXPECT_EQ(cost.across, several ? 400 : 0);
    EXPECT_EQ(cost.launches, 1);
    EXPECT_EQ(NodeSeconds(n, m->mesh(), t), several ? 2 * 3 + 400 / 10.0 : 2 * 1 + 400 / 100.0);
  }
}

TEST(Targets, AGpuIsKnownByItsOwnNameAndSlowerVariantsAreNot) {
  ASSERT_OK_AND_ASSIGN(const Target h200, TargetOfDevice("NVIDIA H200"));
  EXPECT_EQ(h200.name, "h200");
  ASSERT_OK_AND_ASSIGN(const Target a100, TargetOfDevice("NVIDIA A100-SXM4-80GB"));
  EXPECT_EQ(a100.flops, 312e12);
  for (const char* other : {"NVIDIA GH200 480GB", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA L4", ""}) {
    EXPECT_FALSE(TargetOfDevice(other).ok()) << other;
  }
}

}  // namespace
}  // namespace moe::cost
