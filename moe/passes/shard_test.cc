#include "moe/passes/shard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/conversion_steps.h"
#include "moe/ir/state.h"
#include "moe/ir/text.h"
#include "moe/ir/verifier.h"
#include "moe/testing/sharded_model.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

Value Root(Value v) {
  while (absl::StartsWith(v.node->op_name(), "comm.") && !v.node->Is("comm.stage_reduce"))
    v = v.node->operand(0);
  return v;
}

bool IsAccumulated(const Node& n, int result) {
  return std::any_of(n.uses(result).begin(), n.uses(result).end(), [](const Use& u) {
    return u.user->Is("optim.accumulate") ||
           (absl::StartsWith(u.user->op_name(), "comm.") && IsAccumulated(*u.user, 0));
  });
}

bool IsWeight(Value root) {
  if (root.node->Is("arg") && BindingKind(root.node->attributes()) == "state") return true;
  return IsAccumulated(*root.node, root.index);
}

// Collectives of values with three or more dims that are no weights and belong to no router, by phase:
// "4RS 3AG | 4RS 7AG".
std::string Activations(const ShardedModel& c) {
  static const std::set<std::string> small = {"moe.top_k",      "moe.slots",      "nn.softmax",
                                              "moe.combine_dp", "moe.top_k_grad", "nn.head_stats"};
  std::map<StepKind, int> counts[2];
  for (const auto& f : c.module().functions()) {
    for (const auto& n : f->body()) {
      const std::string steps = n->StringOr("steps", "");
      if (steps.empty() || n->phase == Phase::kUpdate) continue;
      const Value root = Root(n->operand(0));
      if (IsWeight(root) || n->type().rank() < 3 || small.count(root.node->op_name())) continue;
      const std::vector<ConversionStep> parsed = *ParseSteps(steps, c.module().mesh());
      for (const ConversionStep& s : parsed) {
        if (!IsLocal(s.kind)) ++counts[n->phase == Phase::kBackward][s.kind];
      }
    }
  }
  std::vector<std::string> sides;
  for (const auto& side : counts) {
    std::vector<std::string> words;
    for (const auto& [kind, name] :
         {std::pair(StepKind::kAllReduce, "AR"), std::pair(StepKind::kReduceScatter, "RS"),
          std::pair(StepKind::kAllGather, "AG"), std::pair(StepKind::kAllToAll, "A2A"),
          std::pair(StepKind::kPermute, "P")}) {
      const auto it = side.find(kind);
      if (it != side.end()) words.push_back(absl::StrCat(it->second, name));
    }
    sides.push_back(words.empty() ? "-" : absl::StrJoin(words, " "));
  }
  return absl::StrJoin(sides, " | ");
}

std::string Counts(const ModelConfig& config, const std::string& strategy, int64_t batch = 8) {
  absl::StatusOr<std::unique_ptr<ShardedModel>> c = CompileSharded(config, strategy, batch);
  return c.ok() ? Activations(**c) : c.status().ToString();
}

TEST(Shard, Dump) {
  if (const char* strategy = getenv("DUMP")) {
    auto c = CompileSharded(getenv("DROPLESS") ? SmallDropless() : SmallMoe(), strategy,
                            getenv("BATCH") ? atoi(getenv("BATCH")) : 8);
    ASSERT_OK(c);
    std::cout << PrintModule((*c)->module());
    std::cout << (*c)->milliseconds << " ms\n";
    for (auto& n : (*c)->notes) std::cout << n << "\n";
    std::cout << Activations(**c) << "\n";
  }
}

TEST(Shard, Big) {
  if (const char* strategy = getenv("BIG")) {
    ModelConfig c;
    c.set_name("mixtral");
    c.set_num_layers(56);
    c.set_hidden_size(6144);
    c.set_num_attention_heads(48);
    c.set_num_key_value_heads(8);
    c.set_ffn_hidden_size(16384);
    c.set_vocab_size(32768);
    c.set_seq_length(4096);
    c.set_num_experts(8);
    c.set_moe_router_topk(2);
    c.set_aux_loss_coeff(0.01);
    c.set_vocab_blocks(16);
    auto m = CompileSharded(c, strategy, 1024);
    ASSERT_OK(m);
    std::cout << (*m)->milliseconds << " ms\n";
    for (auto& n : (*m)->notes) std::cout << n << "\n";
  }
}

// The textbook's, and algebra.md's table.
TEST(Shard, ActivationCollectivesOfKnownStrategies) {
  EXPECT_EQ(Counts(SmallMoe(), "dp=8"), "- | -");
  EXPECT_EQ(Counts(SmallDense(), "tp=2 dp=4"), "4AR | 4AR");
  EXPECT_EQ(Counts(SmallDense(), "tp=2 dp=4 sp vp"), "5RS 5AG | 5RS 10AG");
  EXPECT_EQ(Counts(SmallDense(), "tp=2 dp=4 vp"), "5AR | 5AR");
  EXPECT_EQ(Counts(SmallMoe(), "dp=8 ep=4"), "2A2A | 2A2A");
  EXPECT_EQ(Counts(SmallMoe(), "dp=8 ep=8"), "2A2A | 2A2A");
  EXPECT_EQ(Counts(SmallDropless(), "dp=8 ep=4"), "2A2A | 2A2A");
  EXPECT_EQ(Counts(SmallMoe(), "tp=2 dp=4 ep=4 sp vp zero=1"), "4RS 4AG 2A2A | 4RS 8AG 2A2A");
  EXPECT_EQ(Counts(SmallMoe(), "tp=4 dp=4 ep=8 sp vp zero=3"), "4RS 4AG 2A2A | 4RS 8AG 2A2A");
  EXPECT_EQ(Counts(SmallMoe(), "cp=2 tp=2 dp=2 ep=8 sp vp"), "4RS 8AG 2A2A | 8RS 12AG 2A2A");
  EXPECT_EQ(Counts(SmallMoe(), "cp=2 tp=2 dp=4 ep=8 sp vp zero=1"), "4RS 8AG 2A2A | 8RS 12AG 2A2A");
  EXPECT_EQ(Counts(SmallMoe(), "tp=8 etp=8"), "4AR | 4AR");
  EXPECT_EQ(Counts(SmallMoe(), "tp=2 dp=4 etp=2"), "4AR | 4AR");
}

}  // namespace
}  // namespace moe
