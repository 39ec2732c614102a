#include "moe/passes/context_parallel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/builder.h"
#include "moe/ir/state.h"
#include "moe/model/transformer.h"
#include "moe/passes/autodiff.h"
#include "moe/runtime/interpreter.h"
#include "moe/testing/pass_test.h"
#include "moe/testing/random_inputs.h"
#include "moe/testing/sharded_model.h"

namespace moe::passes {
namespace {

PassContext Words(const std::string& strategy) {
  PassContext context;
  context.strategy = *strategy::ParseStrategy(strategy);
  return context;
}

class ContextParallelTest : public testing::PassTest {};

TEST_F(ContextParallelTest, RingOfTwo) {
  ExpectRewrite(ContextParallel, R"ir(
    module @m
    func @step(%q: f32[2,8,4,4], %k: f32[2,8,2,4], %v: f32[2,8,2,4], %p: s32[8] {kind = "batch", name = "positions"}) {
      // CHECK: %[[P1:.*]] = math.rotate(%p) {blocks = 2, dim = 0}
      // CHECK: %[[K1:.*]] = math.rotate(%k) {blocks = 2, dim = 1}
      // CHECK: %[[V1:.*]] = math.rotate(%v) {blocks = 2, dim = 1}
      // CHECK: %[[O0:.*]], %[[L0:.*]] = nn.attention(%q, %k, %v, %p, %p) {blocks = 2}
      // CHECK: %[[O1:.*]], %[[L1:.*]] = nn.attention(%q, %[[K1]], %[[V1]], %p, %[[P1]]) {blocks = 2}
      // CHECK: %o, %l = nn.attention_merge(%[[O0]], %[[L0]], %[[O1]], %[[L1]])
      // CHECK: return %o
      %o, %l = nn.attention(%q, %k, %v, %p, %p) : f32[2,8,4,4], f32[2,8,4]
      return %o, %l
    })ir",
                Words("cp=2 cp_attention=ring cp_order=contiguous"));
}

TEST_F(ContextParallelTest, ZigZagOfInputsAndOfCutGroups) {
  ExpectRewrite(ContextParallel, R"ir(
    module @m
    func @step(%x: f32[2,8] {kind = "batch", name = "mask"}) {
      // CHECK: %[[Z:.*]] = math.permute_blocks(%x) {dim = 1, order = [0, 3, 1, 2]}
      // CHECK: %[[S:.*]] = math.silu(%[[Z]])
      // CHECK: %[[I:.*]] = math.permute_blocks(%[[S]]) {dim = 1, order = [0, 2, 3, 1]}
      // CHECK: %[[G:.*]] = math.reshape(%[[I]])
      // CHECK: %[[M:.*]] = math.reshape(%[[G]])
      // CHECK: %[[Y:.*]] = math.permute_blocks(%[[M]]) {dim = 1, order = [0, 3, 1, 2]}
      // CHECK: return %[[Y]]
      %a = math.silu(%x) : f32[2,8]
      %g = math.reshape(%a) {eq = "b (c t) -> b c t", extents = ["c=2", "t=4"]} : f32[2,2,4]
      %y = math.reshape(%g) {eq = "b c t -> b (c t)", extents = ["c=2", "t=4"]} : f32[2,8]
      return %y
    })ir",
                Words("cp=2 cp_order=zigzag"));
}

TEST_F(ContextParallelTest, WhatCannotBe) {
  constexpr char kText[] = R"ir(
    module @m
    func @step(%x: f32[2,6] {kind = "batch", name = "mask"}) {
      %a = math.silu(%x) : f32[2,6]
      return %a
    })ir";
  ExpectPassError(ContextParallel, kText, absl::StatusCode::kInvalidArgument, {"cp = 4", "sequence of 6"},
                  Words("cp=4"));
  ExpectPassError(ContextParallel, kText, absl::StatusCode::kInvalidArgument,
                  {"2 cp = 4", "6 tokens", "contiguous"}, Words("cp=2 cp_order=zigzag"));
  ExpectUnchanged(ContextParallel, kText, Words("dp=2"));
}

// On one device the rewritten step gives what it gave before: gradients and losses of every model and choice.
struct Outcome {
  double loss;
  std::map<std::string, std::vector<double>> gradients;
};

Outcome RunStep(const model::ModelConfig& config, const std::string& strategy, std::string* note) {
  PassContext context = Words(strategy);
  std::vector<std::string> notes;
  context.notes = &notes;
  model::BuildOptions build;
  build.global_batch = 2;
  Program program;
  program.module = *model::BuildModel(model::ResolveModelConfig(config), build);
  EXPECT_OK(Autodiff(program, context).status());
  EXPECT_OK(ContextParallel(program, context).status());
  if (!notes.empty()) *note = notes.back();
  std::unique_ptr<runtime::Interpreter> run = *runtime::Interpreter::Create(*program.module);
  EXPECT_OK(run->InitializeState(3));
  testing::RandomInputOptions random;
  runtime::Reports reports = *run->TrainStep(*testing::RandomInputs(*program.module, random, 1));
  Outcome out{reports.at("lm loss").at(0), {}};
  for (const auto& s : program.module->states()) {
    if (AttrString(s->attributes, "kind") == "gradient") out.gradients[s->name] = *run->ReadState(s->name);
  }
  return out;
}

TEST(ContextParallelMeaning, TheSameOnOneDevice) {
  for (const int64_t groups : {1, 4, 8}) {
    for (const bool dropless : {false, true}) {
      model::ModelConfig config = dropless ? testing::SmallDropless() : testing::SmallMoe();
      config.set_dtype("f64");
      config.set_seq_length(16);
      config.set_routing_groups_per_sequence(groups);
      std::string note;
      const Outcome want = RunStep(config, "dp=1", &note);
      for (const char* strategy :
           {"cp=2 cp_attention=ring cp_order=zigzag", "cp=4 cp_attention=ring cp_order=zigzag",
            "cp=4 cp_attention=ring cp_order=contiguous", "cp=8 cp_attention=gather cp_order=zigzag"}) {
        SCOPED_TRACE(absl::StrCat(strategy, ", ", groups, " groups", dropless ? ", dropless" : ""));
        const Outcome got = RunStep(config, strategy, &note);
        EXPECT_NEAR(got.loss, want.loss, 1e-12);
        for (const auto& [name, g] : want.gradients) {
          double error = 0, norm = 0;
          for (size_t i = 0; i < g.size(); ++i) {
            error += std::pow(got.gradients.at(name)[i] - g[i], 2), norm += g[i] * g[i];
          }
          EXPECT_LE(std::sqrt(error), 1e-11 * std::sqrt(norm) + 1e-15) << name;
        }
      }
    }
  }
}

TEST(ContextParallelChoice, ByCost) {
  model::ModelConfig config = testing::SmallMoe();
  config.set_seq_length(16);
  config.set_routing_groups_per_sequence(2);
  std::string note;
  RunStep(config, "cp=2", &note);
  EXPECT_TRUE(absl::StrContains(note, "would cut the 2 routing groups")) << note;
  config.set_routing_groups_per_sequence(4);
  RunStep(config, "cp=2", &note);
  EXPECT_TRUE(absl::StrContains(note, "in zig-zag")) << note;
  config.set_seq_length(18);
  config.set_routing_groups_per_sequence(1);
  RunStep(config, "cp=2", &note);
  EXPECT_TRUE(absl::StrContains(note, "zig-zag") || absl::StrContains(note, "does not divide")) << note;
}

// Short sequences pay for the launches of a ring, long ones hide the exchange behind attention.
TEST(ContextParallelChoice, RingWhereComputeHidesTheExchange) {
  Module module("m");
  Function* f = module.AddFunction("step");
  Builder b(f);
  const auto attention = [&](int64_t length) {
    const Value q = f->AddArg("q", Type(DType::kF32, {1, length, 8, 64}));
    const Value k = f->AddArg("k", Type(DType::kF32, {1, length, 8, 64}));
    const Value p = f->AddArg("p", Type(DType::kS32, {length}));
    return *b.CreateNode("nn.attention", {q, k, k, p, p});
  };
  const strategy::Strategy s = *strategy::ParseStrategy("cp=4");
  const Mesh node({{"a", 4}}, {{"cp", {0}}}), nodes({{"a", 4}}, {{"cp", {0}}, {"node", {}}});
  const AttentionSeconds little = EstimateAttention(*attention(64), s, node, cost::Target());
  EXPECT_LT(little.gather, little.ring);
  const AttentionSeconds much = EstimateAttention(*attention(1 << 16), s, node, cost::Target());
  EXPECT_LT(much.ring, much.gather);
  // Between nodes a gather takes longer; a ring hides even that.
  const AttentionSeconds across = EstimateAttention(*attention(1 << 16), s, nodes, cost::Target());
  EXPECT_GT(across.gather, much.gather);
  EXPECT_LT(across.ring - much.ring, across.gather - much.gather);
}

}  // namespace
}  // namespace moe::passes
