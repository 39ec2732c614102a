#include "moe/passes/schedule/schedule.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/text.h"
#include "moe/passes/pipeline.h"
#include "moe/passes/schedule/schedule_table.h"
#include "moe/strategy/strategy.h"
#include "moe/testing/compile_program.h"
#include "moe/testing/sharded_model.h"
#include "moe/testing/validate_passes.h"

namespace moe::passes {
namespace {

// Two chunks on two stages: an activation goes forward, its gradient comes back.
constexpr char kPhases[] = R"(
module @m mesh<pp=2>
state @grad.w : f32[4] {kind = "gradient", of = "w", stages = [1]}

func @forward0(%x: f32[4] {kind = "batch", name = "x"}) {
  %y = math.silu(%x) : f32[4]
  return %y {kind = "boundary", name = "act.0", peer = 1}
}

func @backward0(%x: f32[4] {kind = "batch", name = "x"}, %dy: f32[4] {kind = "boundary", name = "grad.0", peer = 1}) {
  %dx = math.mul(%dy, %x) : f32[4]
  return %dx {kind = "report", name = "dx"}
}

func @forward1(%x: f32[4] {kind = "boundary", name = "act.0", peer = 0}) {
  %y = math.silu(%x) : f32[4]
  return %y {kind = "residual", name = "y"}
}

func @backward1(%y: f32[4] {kind = "residual", name = "y"}, %g: f32[4] {kind = "state", name = "grad.w"}) {
  %n = optim.accumulate(%g, %y) : f32[4]
  %dx = math.mul(%y, %y) : f32[4]
  return %n {kind = "state", name = "grad.w"}, %dx {kind = "boundary", name = "grad.0", peer = 0}
}

func @update1(%g: f32[4] {kind = "state", name = "grad.w"}) {
  update:
  %s = math.sum_squares(%g) : f32[]
  return %s {kind = "report", name = "norm"}
}
)";

// A line per action of a stage, with the slots that it reads and writes.
std::string Actions(const Program& program, const std::string& name, int stage) {
  std::string out;
  for (const Action& a : program.schedule.actions.at(name)[stage]) {
    absl::StrAppend(&out, ActionToString(a));
    if (a.residual_slot >= 0) absl::StrAppend(&out, ", residuals ", a.residual_slot);
    for (const auto& [value, slot] : a.boundary_slots) absl::StrAppend(&out, ", ", value, " in ", slot);
    if (a.slot >= 0) absl::StrAppend(&out, ", slot ", a.slot);
    absl::StrAppend(&out, "\n");
  }
  return out;
}

class ScheduleTest : public ::testing::Test {
 protected:
  void SetUp() override {
    context_.strategy.pp = 2;
    context_.strategy.microbatches = 2;
  }
  absl::Status Resolve(const std::string& text) {
    ASSIGN_OR_RETURN(program_.module, ParseModule(text));
    ASSIGN_OR_RETURN(const Schedule schedule, MakeSchedule(context_.strategy));
    program_.schedule = schedule;
    return ResolveSchedule(program_, context_).status();
  }
  PassContext context_;
  Program program_;
};

// 1F1B. The second activation leaves stage 0 while the first is still on its way, so it has a slot of its
// own; stage 1 keeps one microbatch at a time.
TEST_F(ScheduleTest, CellsBecomeActionsWithTransfersAndSlots) {
  ASSERT_OK(Resolve(kPhases));
  EXPECT_EQ(Actions(program_, "train_step", 0),
            "reset\n"
            "F0.0, residuals 0, act.0 in 0\n"
            "send act.0 mb0 -> stage 1, slot 0\n"
            "F0.1, residuals 1, act.0 in 1\n"
            "send act.0 mb1 -> stage 1, slot 1\n"
            "recv grad.0 mb0 <- stage 1, slot 0\n"
            "B0.0, residuals 0, grad.0 in 0\n"
            "recv grad.0 mb1 <- stage 1, slot 0\n"
            "B0.1, residuals 1, grad.0 in 0\n");
  EXPECT_EQ(Actions(program_, "train_step", 1),
            "reset\n"
            "recv act.0 mb0 <- stage 0, slot 0\n"
            "F1.0, residuals 0, act.0 in 0\n"
            "B1.0, residuals 0, grad.0 in 0\n"
            "send grad.0 mb0 -> stage 0, slot 0\n"
            "recv act.0 mb1 <- stage 0, slot 0\n"
            "F1.1, residuals 0, act.0 in 0\n"
            "B1.1, residuals 0, grad.0 in 0\n"
            "send grad.0 mb1 -> stage 0, slot 0\n"
            "update\n");
}

// An evaluation has the forwards alone, and updates nothing.
TEST_F(ScheduleTest, EvaluationIsTheForwards) {
  ASSERT_OK(Resolve(kPhases));
  EXPECT_EQ(Actions(program_, "eval", 1),
            "reset\n"
            "recv act.0 mb0 <- stage 0, slot 0\n"
            "F1.0, residuals 0, act.0 in 0\n"
            "recv act.0 mb1 <- stage 0, slot 0\n"
            "F1.1, residuals 0, act.0 in 0\n");
}

TEST_F(ScheduleTest, SaysWhichPassIsMissing) {
  const std::string text(kPhases);
  ExpectError(Resolve(text.substr(0, text.find("func @backward1"))), absl::StatusCode::kFailedPrecondition,
              "chunk 1 has no function @backward1", "run split-phases before it");
}

// A table that waits for itself stands still, and the message says where.
TEST_F(ScheduleTest, RefusesATableThatStandsStill) {
  ASSERT_OK_AND_ASSIGN(program_.module, ParseModule(kPhases));
  ASSERT_OK_AND_ASSIGN(program_.schedule, MakeSchedule(context_.strategy));
  std::swap(program_.schedule.table[0][0], program_.schedule.table[0].back());
  EXPECT_FALSE(ResolveSchedule(program_, context_).ok());
}

// What the actions do is what the functions mean: one step in lockstep, where microbatches go one after the
// other and nothing has a schedule, against the executor on the finished plan.
class ScheduleMeaningTest : public ::testing::TestWithParam<const char*> {};

TEST_P(ScheduleMeaningTest, ActionsComputeTheStep) {
  testing::PassValidator validator({.microbatches = 0});
  Program unscheduled;
  int compared = 0;
  PipelineOptions options;
  options.validate = [&](const std::string& pass, const Program& before,
                         const Program& after) -> absl::Status {
    if (pass == "schedule") unscheduled = CloneProgram(before);
    if (pass != "plan-memory") return absl::OkStatus();
    ++compared;
    return validator.Compare("schedule", unscheduled, after);
  };
  ASSERT_OK(testing::CompileProgram(testing::SmallMoe(), GetParam(), {.passes = options}).status());
  EXPECT_EQ(compared, 1);
}

INSTANTIATE_TEST_SUITE_P(Schedules, ScheduleMeaningTest,
                         ::testing::Values("pp=2 microbatches=4", "pp=2 microbatches=4 schedule=gpipe",
                                           "pp=2 microbatches=4 schedule=zb-h1"));

}  // namespace
}  // namespace moe::passes
