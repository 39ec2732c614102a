#include "moe/cost/node_cost.h"

#include <gtest/gtest.h>

#include "moe/base/status_matchers.h"
#include "moe/ir/text.h"

namespace moe {
namespace {

TEST(NodeCost, LocalFlopsAndRingBytes) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> m, ParseModule(R"(
    module @m mesh<tp=4>
    func @f(%x: f32[8,16], %w: f32[16,32@tp]) {
      %y = math.einsum(%x, %w) {eq = "b k, k n -> b n"} place<n=tp> : f32[8,32@tp]
      %z = comm.all_gather(%y) {axes = [tp], steps = "all_gather tp:1>-"} : f32[8,32]
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

}  // namespace
}  // namespace moe
