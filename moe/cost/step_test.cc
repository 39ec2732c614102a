// What a step of a compiled plan runs, sends and takes, on plans whose truth is known.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/cost/play_actions.h"
#include "moe/cost/step_runs.h"
#include "moe/cost/targets.h"
#include "moe/ir/conversion_parts.h"
#include "moe/model/transformer.h"
#include "moe/plan/compile.h"

namespace moe::cost {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<plan::Compiled> Compile(const std::string& words, const Target& target = Target(),
                                       int64_t layers = 2) {
  model::ModelConfig config;
  config.set_num_layers(layers);
  config.set_hidden_size(64);
  config.set_num_attention_heads(4);
  config.set_num_key_value_heads(2);
  config.set_ffn_hidden_size(96);
  config.set_vocab_size(64);
  config.set_seq_length(32);
  config.set_num_experts(4);
  config.set_moe_router_topk(2);
  config.set_moe_ffn_hidden_size(32);
  ASSIGN_OR_RETURN(const strategy::Strategy strategy, strategy::ParseStrategy(words));
  model::BuildOptions build;
  build.global_batch = 16;
  build.microbatches = strategy.microbatches;
  ASSIGN_OR_RETURN(std::unique_ptr<Module> module,
                   model::BuildModel(model::ResolveModelConfig(config), build));
  plan::CompileOptions options;
  options.target = target;
  return plan::Compile(std::move(module), strategy, options);
}

double Sent(const plan::Compiled& compiled) {
  double bytes = 0;
  const Program& program = compiled.plan.program;
  for (int64_t s = 0; s < program.module->mesh().num_stages(); ++s) {
    bytes += SentPerStep(program, static_cast<int>(s)).bytes;
  }
  return bytes;
}

StepTimeline Play(const plan::Compiled& compiled, const Target& target) {
  return PlayActions(compiled.plan.program, CostDurations(compiled.plan.program, target));
}

// Gradients that are reduced early are reduced once, as in the update: overlap moves bytes, and adds none.
TEST(StepRunsTest, WhatBeginsInTheLastMicrobatchRunsOnce) {
  for (const char* words :
       {"dp=4 ep=4 zero=1 microbatches=4 bucket=0", "pp=2 dp=2 microbatches=4 bucket=0"}) {
    SCOPED_TRACE(words);
    ASSERT_OK_AND_ASSIGN(const plan::Compiled off, Compile(absl::StrCat(words, " overlap=off")));
    ASSERT_OK_AND_ASSIGN(const plan::Compiled on, Compile(absl::StrCat(words, " overlap=on")));
    const StepRuns runs(on.plan.program);
    int early = 0;
    for (const auto& f : on.plan.program.module->functions()) {
      for (const Node* n : f->NodesOf("comm.start")) {
        if (!CrossesFunctions(*n)) continue;
        ++early;
        EXPECT_EQ(runs.Of(*n), 1);
      }
    }
    EXPECT_GT(early, 0);
    EXPECT_NEAR(Sent(on), Sent(off), 1e-6 * Sent(off));
  }
}

// Each copy of the model of a bidirectional schedule takes half of the microbatches.
TEST(StepRunsTest, CountsTheActionsOfAFunction) {
  ASSERT_OK_AND_ASSIGN(const plan::Compiled compiled,
                       Compile("pp=2 virtual_chunks=2 schedule=dualpipe microbatches=4", Target(), 2));
  const Program& program = compiled.plan.program;
  ASSERT_EQ(program.schedule.copies, 2);
  const StepRuns runs(program);
  for (const auto& f : program.module->functions()) {
    if (f->body().empty()) continue;
    const Node& n = *f->body().front();
    EXPECT_EQ(runs.Of(n), n.phase == Phase::kUpdate ? 1 : 2) << f->name();
  }
  for (int stage : {0, 1}) {
    for (const BoundarySend& send : BoundariesSentBy(program, stage)) EXPECT_EQ(send.runs, 2) << send.name;
  }
}

TEST(StepRunsTest, LastRunsAreThoseOfEachFunction) {
  const auto action = [](Action::Kind kind, int chunk, int microbatch) {
    Action a;
    a.kind = kind;
    a.chunk = chunk;
    a.microbatch = microbatch;
    return a;
  };
  EXPECT_EQ(LastRuns({action(Action::kForward, 0, 0), action(Action::kForward, 1, 0),
                      action(Action::kForward, 0, 1), action(Action::kBackward, 0, 0),
                      action(Action::kBackward, 0, 1)}),
            std::vector<bool>({false, true, true, false, true}));
}

// Before there is a schedule, the phase says how often a node runs.
TEST(StepRunsTest, CountsMicrobatchesWithoutASchedule) {
  Program program;
  program.schedule.microbatches = 6;
  model::BuildOptions build;
  build.global_batch = 6;
  build.microbatches = 6;
  model::ModelConfig config;
  config.set_num_layers(1);
  config.set_hidden_size(16);
  config.set_num_attention_heads(2);
  config.set_ffn_hidden_size(16);
  config.set_vocab_size(32);
  config.set_seq_length(8);
  ASSERT_OK_AND_ASSIGN(program.module, model::BuildModel(model::ResolveModelConfig(config), build));
  const StepRuns runs(program);
  Node& n = *program.module->functions().front()->body().front();
  EXPECT_EQ(runs.Of(n), 6);
  n.phase = Phase::kUpdate;
  EXPECT_EQ(runs.Of(n), 1);
}

// The queues run beside each other: no function takes less than the longer one, and a step with overlap takes no longer
// than one without, where the target's links are slow enough to tell.
TEST(PlayActionsTest, QueuesRunBesideEachOther) {
  ASSERT_OK_AND_ASSIGN(Target target, NamedTarget("h100"));
  target.link_bytes_per_second = 1e9;
  const std::string words = "dp=4 ep=2 zero=1 microbatches=4 bucket=0";
  ASSERT_OK_AND_ASSIGN(const plan::Compiled off, Compile(absl::StrCat(words, " overlap=off"), target));
  ASSERT_OK_AND_ASSIGN(const plan::Compiled on, Compile(absl::StrCat(words, " overlap=on"), target));
  const auto busy = [&](const plan::Compiled& compiled, bool exchanges) {
    double seconds = 0;
    const Program& program = compiled.plan.program;
    const StepRuns runs(program);
    for (const auto& f : program.module->functions()) {
      for (const auto& n : f->body()) {
        if ((n->queue == Queue::kComm) != exchanges) continue;
        seconds += NodeSeconds(*n, program.module->mesh(), target) * static_cast<double>(runs.Of(*n));
      }
    }
    return seconds;
  };
  const StepTimeline t_off = Play(off, target), t_on = Play(on, target);
  EXPECT_NEAR(busy(on, true), busy(off, true), 1e-6 * busy(off, true));
  EXPECT_LT(t_on.end, t_off.end);
  for (const auto& [compiled, t] : {std::pair(&on, &t_on), {&off, &t_off}}) {
    EXPECT_GE(t->end * (1 + 1e-9), std::max(busy(*compiled, true), busy(*compiled, false)));
    EXPECT_LE(t->end * (1 - 1e-9), busy(*compiled, true) + busy(*compiled, false));
  }
}

// One bubble of a plan: what `schedule` says of it is what a timeline of the finished plan shows.
TEST(PlayActionsTest, TheScheduleSaysTheBubbleOfThePlan) {
  ASSERT_OK_AND_ASSIGN(const Target target, NamedTarget("h100"));
  for (const char* words : {"pp=2 dp=2 microbatches=4", "pp=2 dp=2 ep=2 zero=1 microbatches=4 overlap=off"}) {
    ASSERT_OK_AND_ASSIGN(const plan::Compiled compiled, Compile(words, target));
    std::string said;
    for (const auto& [pass, line] : compiled.plan.program.notes) {
      if (pass == "schedule") said = line;
    }
    EXPECT_THAT(said, HasSubstr(absl::StrFormat("%.1f%% bubble", 100 * Play(compiled, target).bubble)));
  }
}

TEST(PlayActionsTest, UnitsGiveTheTextbooksBubble) {
  ASSERT_OK_AND_ASSIGN(const plan::Compiled compiled, Compile("pp=2 dp=2 microbatches=4"));
  EXPECT_NEAR(PlayActions(compiled.plan.program, UnitDurations()).bubble, 1.0 / 5,
              1e-9);  // (p - 1) / (m + p - 1)
}

}  // namespace
}  // namespace moe::cost
