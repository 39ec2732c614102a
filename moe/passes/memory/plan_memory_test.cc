#include "moe/passes/memory/plan_memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/text.h"
#include "moe/passes/pipeline.h"
#include "moe/passes/schedule/schedule.h"
#include "moe/passes/schedule/schedule_table.h"
#include "moe/strategy/strategy.h"
#include "moe/testing/compile_program.h"
#include "moe/testing/sharded_model.h"
#include "moe/testing/validate_passes.h"

namespace moe::passes {
namespace {

// One stage and two ranks. Every value takes 64 bytes of a rank, except %w and values of its size, which take
// 128.
constexpr char kModule[] = R"(
module @m mesh<dp=2>
state @w : f32[32] {kind = "parameter"}
state @grad.w : f32[32] {kind = "gradient", of = "w"}

func @forward0(%x: f32[32@dp] {kind = "batch", name = "x"}) {
  %a = math.silu(%x) : f32[32@dp]
  %b = math.silu(%a) : f32[32@dp]
  %c = math.silu(%b) : f32[32@dp]
  %d = math.silu(%c) : f32[32@dp]
  %e = math.mul(%a, %d) : f32[32@dp]
  return %e {kind = "residual", name = "e"}
}

func @backward0(%w: f32[32] {kind = "state", name = "w"}, %g: f32[32] {kind = "state", name = "grad.w"},
                %e: f32[32@dp] {kind = "residual", name = "e"}) {
  %p = comm.all_gather(%e) {axes = [dp], steps = "all_gather dp:0>-"} @comm : f32[32]
  %q = math.mul(%p, %w) : f32[32]
  %n = optim.accumulate(%g, %q) : f32[32]
  return %n {kind = "state", name = "grad.w"}
}
)";

class PlanMemoryTest : public ::testing::Test {
 protected:
  absl::Status Plan(const std::string& text) {
    context_.strategy.dp = 2;
    context_.strategy.microbatches = 2;
    ASSIGN_OR_RETURN(program_.module, ParseModule(text));
    ASSIGN_OR_RETURN(program_.schedule, MakeSchedule(context_.strategy));
    RETURN_IF_ERROR(ResolveSchedule(program_, context_).status());
    return PlanMemory(program_, context_).status();
  }
  // "%a frame 0, %b frame 64": where the values of a function lie.
  std::string Places(const std::string& function) const {
    std::string out;
    for (const auto& [name, ref] : program_.memory.functions.at(function).values) {
      absl::StrAppend(&out, out.empty() ? "" : ", ", "%", name, " ", SpaceName(ref.space), " ", ref.offset);
    }
    return out;
  }
  PassContext context_;
  Program program_;
};

// %a lives to the end. %b and %c alternate with it in what is left, since a node does not overwrite its
// operand; %d takes the place of %b. The residual lies in its set.
TEST_F(PlanMemoryTest, AFrameHoldsWhatIsLive) {
  ASSERT_OK(Plan(kModule));
  EXPECT_EQ(Places("forward0"),
            "%a frame 0, %b frame 64, %c frame 128, %d frame 64, %e residual 0, %x input 0");
  EXPECT_EQ(program_.memory.functions.at("forward0").frame_bytes, 192);
  EXPECT_EQ(program_.memory.functions.at("forward0").live_bytes, 192);
}

// The sum of gradients lies in the state's own bytes, behind the parameter's.
TEST_F(PlanMemoryTest, AnUpdateLiesInTheState) {
  ASSERT_OK(Plan(kModule));
  EXPECT_EQ(Places("backward0"),
            "%e residual 0, %g state 128, %n state 128, %p frame 0, %q frame 128, %w state 0");
}

TEST_F(PlanMemoryTest, RegionsOfAStage) {
  ASSERT_OK(Plan(kModule));
  ASSERT_EQ(program_.memory.stages.size(), 1);
  const StageMemory& stage = program_.memory.stages[0];
  EXPECT_EQ(stage.state_bytes, 256);
  EXPECT_EQ(stage.input_bytes, 64);
  EXPECT_EQ(stage.residuals.at(0).bytes, 64);
  EXPECT_EQ(stage.frame_bytes, 256);  // of @backward0, the larger of the two
  EXPECT_EQ(stage.peak_bytes(), 256 + 64 + 64 * stage.residuals.at(0).count + 256);
  EXPECT_EQ(stage.state_bytes_by_kind.at("parameter"), 128);
}

// The gather runs on another queue than what reads it.
TEST_F(PlanMemoryTest, QueuesWaitForWhatTheyRead) {
  ASSERT_OK(Plan(kModule));
  const std::map<std::string, std::vector<std::string>> want = {{"q", {"p"}}};
  EXPECT_EQ(program_.memory.functions.at("backward0").waits, want);
}

// The scratch of a kernel is a buffer of the frame while the kernel runs.
TEST_F(PlanMemoryTest, ScratchOfKernels) {
  context_.workspace = [](const Node& n, const Mesh&) { return n.result_name() == "c" ? int64_t{100} : 0; };
  ASSERT_OK(Plan(kModule));
  const FunctionMemory& f = program_.memory.functions.at("forward0");
  ASSERT_EQ(f.workspace.count("c"), 1);
  EXPECT_EQ(f.workspace.at("c").bytes, 100);
  EXPECT_EQ(f.live_bytes, 3 * 64 + 128);  // %a, %b, %c and the scratch, in multiples of 64
}

TEST_F(PlanMemoryTest, RefusesAStateThatIsReadAfterItsUpdate) {
  std::string text(kModule);
  const std::string line = "  return %n {kind = \"state\", name = \"grad.w\"}\n";
  text.replace(
      text.find(line), line.size(),
      "  %late = math.mul(%g, %n) : f32[32]\n"
      "  return %n {kind = \"state\", name = \"grad.w\"}, %late {kind = \"report\", name = \"r\"}\n");
  ExpectError(Plan(text), absl::StatusCode::kInternal, "plan-memory: %n in @backward0",
              "gives @grad.w its new value while the old one is still read");
}

// The executor computes in the planned bytes what a lockstep run computes in buffers of their own.
class PlanMemoryMeaningTest : public ::testing::TestWithParam<const char*> {};

TEST_P(PlanMemoryMeaningTest, PlacesHoldTheStep) {
  testing::PassValidator validator({.microbatches = 0});
  int compared = 0;
  PipelineOptions options;
  options.validate = [&](const std::string& pass, const Program& before, const Program& after) {
    if (pass != "plan-memory") return absl::OkStatus();
    ++compared;
    return validator.Compare(pass, before, after);
  };
  ASSERT_OK(testing::CompileProgram(testing::SmallDropless(), GetParam(), {.passes = options}).status());
  EXPECT_EQ(compared, 1);
}

INSTANTIATE_TEST_SUITE_P(Strategies, PlanMemoryMeaningTest,
                         ::testing::Values("dp=2 ep=2 zero=3 overlap=on microbatches=2",
                                           "pp=2 tp=2 etp=2 sp microbatches=2"));

}  // namespace
}  // namespace moe::passes
