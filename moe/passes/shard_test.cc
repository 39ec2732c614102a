#include "moe/passes/shard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
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
#include "moe/model/transformer.h"
#include "moe/passes/autodiff.h"
#include "moe/passes/insert_collectives.h"
#include "moe/passes/partition_stages.h"
#include "moe/passes/seeds.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

// Two layers, the second with experts; sizes that divide over 16 ranks.
ModelConfig Base() {
  ModelConfig c;
  c.set_name("base");
  c.set_num_layers(2);
  c.set_hidden_size(16);
  c.set_num_attention_heads(8);
  c.set_num_key_value_heads(2);
  c.set_head_dim(4);
  c.set_ffn_hidden_size(16);
  c.set_vocab_size(32);
  c.set_seq_length(8);
  c.set_num_experts(8);
  c.set_moe_router_topk(2);
  c.set_first_dense_layers(1);
  c.set_capacity_factor(1);
  c.set_routing_groups_per_sequence(4);
  c.set_aux_loss_coeff(0.02);
  c.set_aux_loss_scope("microbatch");
  c.set_vocab_blocks(8);
  c.set_dtype("f64");
  return c;
}
ModelConfig Dense() {
  ModelConfig c = Base();
  c.set_num_experts(0);
  c.set_moe_router_topk(0);
  c.set_first_dense_layers(0);
  c.set_capacity_factor(0);
  c.set_routing_groups_per_sequence(0);
  c.set_aux_loss_coeff(0);
  c.set_aux_loss_scope("");
  return c;
}
ModelConfig Dropless() {
  ModelConfig c = Base();
  c.set_capacity_factor(0);
  return c;
}

struct Compiled {
  Program program;
  std::vector<std::string> notes;
  PassContext context;
  double milliseconds = 0;

  const Module& module() const { return *program.module; }
  Module& module() { return *program.module; }
  Function& function(absl::string_view name) { return *program.module->Find(name); }
};

absl::StatusOr<std::unique_ptr<Compiled>> Compile(const ModelConfig& config, const std::string& strategy,
                                                  int64_t batch = 8) {
  auto c = std::make_unique<Compiled>();
  absl::StatusOr<Strategy> s = ParseStrategy(strategy);
  if (!s.ok()) return s.status();
  c->context.strategy = *s;
  c->context.notes = &c->notes;
  BuildOptions options;
  options.global_batch = batch;
  options.microbatches = s->microbatches;
  const ModelConfig resolved = ResolveModelConfig(config);
  absl::StatusOr<std::unique_ptr<Module>> module = BuildModel(resolved, options);
  if (!module.ok()) return module.status();
  c->program.module = *std::move(module);
  absl::StatusOr<Mesh> mesh = FoldMesh(*s, resolved.num_key_value_heads());
  if (!mesh.ok()) return mesh.status();
  c->program.module->mesh() = *mesh;
  const auto begin = std::chrono::steady_clock::now();
  for (auto* pass : {&Autodiff, &PartitionStages, &Shard, &InsertCollectives}) {
    c->notes.clear();
    if (pass == &Shard || pass == &InsertCollectives) {
      const auto start = std::chrono::steady_clock::now();
      const absl::StatusOr<bool> changed = (*pass)(c->program, c->context);
      if (!changed.ok()) return changed.status();
      c->milliseconds +=
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    } else if (const absl::StatusOr<bool> changed = (*pass)(c->program, c->context); !changed.ok()) {
      return changed.status();
    }
    const absl::Status verified = Verify(*c->program.module);
    if (!verified.ok()) return verified;
  }
  (void)begin;
  return c;
}

Value Root(Value v) {
  while (absl::StartsWith(v.node->op_name(), "comm.") && !v.node->Is("comm.stage_reduce")) v = v.node->operand(0);
  return v;
}

bool IsAccumulated(const Node& n, int result) {
  return std::any_of(n.uses(result).begin(), n.uses(result).end(), [](const Use& u) {
    return u.user->Is("optim.accumulate") || (absl::StartsWith(u.user->op_name(), "comm.") && IsAccumulated(*u.user, 0));
  });
}

bool IsWeight(Value root) {
  if (root.node->Is("arg") && BindingKind(root.node->attributes()) == "state") return true;
  return IsAccumulated(*root.node, root.index);
}

// Collectives of values with three or more dims that are no weights and belong to no router, by phase:
// "4RS 3AG | 4RS 7AG".
std::string Activations(Compiled& c) {
  static const std::set<std::string> small = {"moe.top_k",      "moe.slots",    "nn.softmax", "moe.combine_dp",
                                              "moe.top_k_grad", "nn.head_stats"};
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
    for (const auto& [kind, name] : {std::pair(StepKind::kAllReduce, "AR"), std::pair(StepKind::kReduceScatter, "RS"),
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
  absl::StatusOr<std::unique_ptr<Compiled>> c = Compile(config, strategy, batch);
  return c.ok() ? Activations(**c) : c.status().ToString();
}

TEST(Shard, Dump) {
  if (const char* strategy = getenv("DUMP")) {
    auto c = Compile(getenv("DROPLESS") ? Dropless() : Base(), strategy, getenv("BATCH") ? atoi(getenv("BATCH")) : 8);
    ASSERT_OK(c);
    std::cout << PrintModule((*c)->module());
    for (auto& n : (*c)->notes) std::cout << n << "\n";
    std::cout << Activations(**c) << "\n";
  }
}

// The textbook's, and algebra.md's table.
TEST(Shard, ActivationCollectivesOfKnownStrategies) {
  EXPECT_EQ(Counts(Base(), "dp=8"), "- | -");
  EXPECT_EQ(Counts(Dense(), "tp=2 dp=4"), "4AR | 4AR");
  EXPECT_EQ(Counts(Dense(), "tp=2 dp=4 sp vp"), "5RS 5AG | 5RS 10AG");
  EXPECT_EQ(Counts(Dense(), "tp=2 dp=4 vp"), "5AR | 5AR");
  EXPECT_EQ(Counts(Base(), "dp=8 ep=4"), "2A2A | 2A2A");
  EXPECT_EQ(Counts(Base(), "dp=8 ep=8"), "2A2A | 2A2A");
  EXPECT_EQ(Counts(Dropless(), "dp=8 ep=4"), "2A2A | 2A2A");
  EXPECT_EQ(Counts(Base(), "tp=2 dp=4 ep=4 sp vp zero=1"), "4RS 4AG 2A2A | 4RS 8AG 2A2A");
  EXPECT_EQ(Counts(Base(), "tp=4 dp=4 ep=8 sp vp zero=3"), "4RS 4AG 2A2A | 4RS 8AG 2A2A");
  EXPECT_EQ(Counts(Base(), "cp=2 tp=2 dp=2 ep=8 sp vp"), "4RS 8AG 2A2A | 8RS 12AG 2A2A");
  EXPECT_EQ(Counts(Base(), "cp=2 tp=2 dp=4 ep=8 sp vp zero=1"), "4RS 8AG 2A2A | 8RS 12AG 2A2A");
  EXPECT_EQ(Counts(Base(), "tp=8 etp=8"), "4AR | 4AR");
  EXPECT_EQ(Counts(Base(), "tp=2 dp=4 etp=2"), "4AR | 4AR");
}

}  // namespace
}  // namespace moe
