// Plans whose communication runs beside compute, or travels in buckets, against the same plans without: nodes
// compute what they did, so every report and every parameter has the same bits. And what the certificate
// makes of exchanges that somebody tampered with.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/state.h"
#include "moe/model/transformer.h"
#include "moe/passes/certify/certify.h"
#include "moe/plan/compile.h"
#include "moe/plan/plan.h"
#include "moe/runtime/executor.h"
#include "moe/runtime/local.h"
#include "moe/testing/random_inputs.h"
#include "moe/testing/sharded_model.h"

namespace moe::passes {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<plan::Plan> CompilePlan(const model::ModelConfig& model, const std::string& words) {
  ASSIGN_OR_RETURN(const strategy::Strategy strategy, strategy::ParseStrategy(words));
  model::BuildOptions build;
  build.global_batch = 8;
  build.microbatches = strategy.microbatches;
  ASSIGN_OR_RETURN(std::unique_ptr<Module> module,
                   model::BuildModel(model::ResolveModelConfig(model), build));
  plan::CompileOptions compile;
  compile.workspace = runtime::WorkspaceHook(kernels::Backend::kCpu, strategy.overload);
  ASSIGN_OR_RETURN(plan::Compiled compiled, plan::Compile(std::move(module), strategy, compile));
  return std::move(compiled.plan);
}

struct Results {
  std::vector<runtime::Reports> reports;
  std::map<std::string, std::vector<double>> states;
};

// An evaluation and three training steps; memory as planned.
absl::StatusOr<Results> Execute(const plan::Plan& plan) {
  runtime::ExecutorOptions options;
  options.timeout = absl::Seconds(60);
  options.poison = true;
  ASSIGN_OR_RETURN(std::unique_ptr<runtime::Executor> executor,
                   runtime::Executor::Create(plan.program, options));
  RETURN_IF_ERROR(executor->InitializeState(5));
  Results results;
  for (int step = 1; step <= 3; ++step) {
    testing::RandomInputOptions random;
    random.seed = 3;
    ASSIGN_OR_RETURN(const runtime::StepInputs inputs, testing::RandomInputs(plan.module(), random, step));
    if (step == 2) {
      ASSIGN_OR_RETURN(runtime::Reports reports, executor->EvalStep(inputs));
      results.reports.push_back(std::move(reports));
    }
    ASSIGN_OR_RETURN(runtime::Reports reports, executor->TrainStep(inputs));
    results.reports.push_back(std::move(reports));
  }
  for (const auto& s : plan.module().states()) {
    ASSIGN_OR_RETURN(results.states[s->name], executor->ReadState(s->name));
  }
  const std::vector<int64_t> measured = executor->MeasuredPeakPerStage();
  for (size_t s = 0; s < measured.size(); ++s) {
    EXPECT_EQ(measured[s], plan.program.memory.stages[s].peak_bytes()) << "stage " << s;
  }
  return results;
}

int CountNodes(const plan::Plan& plan, const std::string& op) {
  int n = 0;
  for (const auto& f : plan.module().functions()) n += static_cast<int>(f->NodesOf(op).size());
  return n;
}

struct Line {
  const char* model;  // cap, drop, or drop f32
  const char* strategy;
  model::ModelConfig Model() const {
    model::ModelConfig c = model == std::string("cap") ? testing::SmallMoe() : testing::SmallDropless();
    if (model == std::string("drop f32")) c.set_dtype("f32");
    return c;
  }
};

class SameBitsTest : public ::testing::TestWithParam<Line> {};

TEST_P(SameBitsTest, AsWithout) {
  const model::ModelConfig model = GetParam().Model();
  ASSERT_OK_AND_ASSIGN(const plan::Plan plain,
                       CompilePlan(model, absl::StrCat(GetParam().strategy, " bucket=0 overlap=off")));
  ASSERT_EQ(CountNodes(plain, "comm.start") + CountNodes(plain, "comm.bucket"), 0);
  ASSERT_OK_AND_ASSIGN(const Results want, Execute(plain));
  for (const char* words : {" bucket=0 overlap=on", " bucket=8192 overlap=off", " bucket=65536 overlap=on"}) {
    SCOPED_TRACE(words);
    ASSERT_OK_AND_ASSIGN(const plan::Plan plan, CompilePlan(model, absl::StrCat(GetParam().strategy, words)));
    if (absl::StrContains(words, "=on")) {
      EXPECT_GT(CountNodes(plan, "comm.start"), 0);
    } else {
      EXPECT_GT(CountNodes(plan, "comm.bucket"), 0);
    }
    // What is stored is what runs.
    ASSERT_OK_AND_ASSIGN(const plan::Plan stored, plan::ParsePlan(plan::SerializePlan(plan)));
    ASSERT_OK_AND_ASSIGN(const Results got, Execute(stored));
    EXPECT_EQ(got.reports, want.reports);
    for (const auto& [name, values] : want.states) EXPECT_EQ(got.states.at(name), values) << name;
  }
}

constexpr Line kLines[] = {
    {"cap", "dp=4"},
    {"cap", "dp=4 ep=4 zero=1 microbatches=2"},
    {"drop", "dp=4 ep=4 zero=2 microbatches=2"},
    {"drop", "dp=4 ep=2 zero=3 microbatches=2"},
    {"cap", "tp=2 dp=2 ep=4 sp vp zero=3 checkpoint=selective"},
    {"drop", "pp=2 dp=2 ep=2 zero=1 microbatches=4"},
    {"drop", "pp=2 dp=2 ep=2 zero=3 expert_zero=1 schedule=zb-h1 microbatches=4"},
    {"cap", "cp=2 tp=2 etp=2 sp zero=1"},
    {"cap", "dp=4 ep=2 zero=3 microbatches=2 compress_gather=f8 compress_grad=bf16"},
    {"drop", "pp=2 dp=2 ep=2 microbatches=2 compress_grad=f8"},
    {"drop f32", "dp=4 ep=4 zero=3 microbatches=2 bf16"},
    {"drop", "dp=4 ep=4 overload=0.6 microbatches=2"},
};
// Experts in parts: of the same bits, too, but in plans of other nodes.
TEST_P(SameBitsTest, InParts) {
  const model::ModelConfig model = GetParam().Model();
  ASSERT_OK_AND_ASSIGN(const plan::Plan plain,
                       CompilePlan(model, absl::StrCat(GetParam().strategy, " overlap=off")));
  int exchanges = 0;
  for (const auto& f : plain.module().functions()) {
    for (const Node* n : f->NodesOf("comm.all_to_all")) exchanges += n->type().rank() == 5;
  }
  if (exchanges == 0) GTEST_SKIP() << "no expert parallelism";
  ASSERT_OK_AND_ASSIGN(const Results want, Execute(plain));
  for (const char* words : {" moe_chunks=2 overlap=off", " moe_chunks=2 overlap=on"}) {
    SCOPED_TRACE(words);
    ASSERT_OK_AND_ASSIGN(const plan::Plan plan, CompilePlan(model, absl::StrCat(GetParam().strategy, words)));
    EXPECT_GT(CountNodes(plan, "moe.split_experts"), 0);
    ASSERT_OK_AND_ASSIGN(const Results got, Execute(plan));
    EXPECT_EQ(got.reports, want.reports);
    for (const auto& [name, values] : want.states) EXPECT_EQ(got.states.at(name), values) << name;
  }
}

TEST(SplitExpertsTest, PartsDivideTheExpertsOfARank) {
  const absl::StatusOr<plan::Plan> plan = CompilePlan(testing::SmallMoe(), "dp=4 ep=4 moe_chunks=3");
  EXPECT_THAT(std::string(plan.status().message()),
              HasSubstr("moe_chunks = 3 does not divide the 2 experts of a rank; legal here: 1, 2"));
}

INSTANTIATE_TEST_SUITE_P(Strategies, SameBitsTest, ::testing::ValuesIn(kLines));

// Gradients of ZeRO-1 are reduced in the backward of the last microbatch; the update waits.
class FlightTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(
        plan_, CompilePlan(testing::SmallMoe(), "pp=2 dp=2 ep=2 zero=1 microbatches=4 overlap=on bucket=0"));
    ASSERT_OK(Certify(plan_.program, {}));
  }
  Function* Find(const std::string& name) { return plan_.program.module->Find(name); }
  // A start of @backward1 whose future crosses.
  Node* Crossing() {
    for (Node* n : Find("backward1")->NodesOf("comm.start")) {
      if (CrossesFunctions(*n)) return n;
    }
    return nullptr;
  }
  void ExpectRefused(const std::string& why) {
    const absl::Status status = Certify(plan_.program, {}).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  }
  plan::Plan plan_;
};

TEST_F(FlightTest, StartsInTheBackwardAndLandsInTheUpdate) {
  ASSERT_NE(Crossing(), nullptr);
  EXPECT_TRUE(Crossing()->BoolOr("last", false));
  int waited_for = 0;
  for (const Node* n : Find("update1")->NodesOf("comm.done")) waited_for += n->operand(0).node->Is("arg");
  EXPECT_GT(waited_for, 0);
  EXPECT_GT(plan_.program.memory.stages[1].future_bytes, 0);
}

TEST_F(FlightTest, EveryMicrobatchWouldOverwriteWhatIsSent) {
  Crossing()->Set("last", false);
  ExpectRefused("in every microbatch");
}

TEST_F(FlightTest, SomebodyWaits) {
  for (Node* arg : Find("update1")->args()) {
    if (arg->binding.kind != Binding::kFuture) continue;
    arg->binding.name = "another";
    break;
  }
  ExpectRefused("nobody starts it");
}

TEST_F(FlightTest, NothingAccumulatesWhileItIsSent) {
  // The last backward once more, after the update began to wait: the order of actions is what counts.
  std::vector<Action>& actions = plan_.program.schedule.actions.at("train_step")[1];
  size_t update = 0, backward = 0;
  for (size_t i = 0; i < actions.size(); ++i) {
    if (actions[i].kind == Action::kUpdate) update = i;
    if (actions[i].kind == Action::kBackward) backward = i;
  }
  std::swap(actions[update], actions[backward]);
  EXPECT_FALSE(Certify(plan_.program, {}).ok());
}

TEST_F(FlightTest, DestinationsAreApart) {
  auto& futures = plan_.program.memory.stages[1].futures;
  ASSERT_GT(futures.size(), 1);
  auto first = futures.begin(), second = std::next(first);
  second->second.offset = first->second.offset;
  ExpectRefused("overlap in the future region");
}

TEST_F(FlightTest, DestinationsLieOutsideTheFrame) {
  const Node* n = Crossing();
  plan_.program.memory.functions.at("backward1").values.at(n->result_name()).space = Space::kFrame;
  ExpectRefused("");
}

// Within a function: source, destination and scratch until the done.
class HoldTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(plan_, CompilePlan(testing::SmallMoe(), "dp=4 ep=4 zero=3 overlap=on bucket=0"));
    ASSERT_OK(Certify(plan_.program, {}));
  }
  plan::Plan plan_;
};

TEST_F(HoldTest, NobodyTakesThePlaceOfWhatIsInFlight) {
  int tried = 0;
  for (const auto& f : plan_.program.module->functions()) {
    FunctionMemory& memory = plan_.program.memory.functions.at(f->name());
    const std::vector<Node*> nodes = f->Nodes();
    for (size_t i = 0; i < nodes.size() && tried < 60; ++i) {
      Node* start = nodes[i];
      if (!start->Is("comm.start") || CrossesFunctions(*start)) continue;
      const Node* done = ArrivedValue(start->result()).node;
      for (size_t j = i + 1; j < nodes.size() && nodes[j] != done; ++j) {
        if (nodes[j]->queue == Queue::kComm || nodes[j]->Is("comm.done")) continue;
        BufferRef& other = memory.values.at(nodes[j]->result_name());
        if (other.space != Space::kFrame || other.bytes == 0) continue;
        for (const std::string& held : {start->result_name(), start->operand(0).name()}) {
          const BufferRef& ref = memory.values.at(held);
          if (ref.space != Space::kFrame) continue;
          const BufferRef was = other;
          other.offset = ref.offset;
          EXPECT_FALSE(Certify(plan_.program, {}).ok())
              << "@" << f->name() << " %" << nodes[j]->result_name() << " onto %" << held;
          other = was;
          ++tried;
        }
        break;
      }
    }
  }
  EXPECT_GT(tried, 5);
}

TEST_F(HoldTest, ReadersWait) {
  int tried = 0;
  for (auto& [name, memory] : plan_.program.memory.functions) {
    const std::map<std::string, std::vector<std::string>> waits = memory.waits;
    for (const Node* done : plan_.program.module->Find(name)->NodesOf("comm.done")) {
      if (tried >= 40 || !waits.count(done->result_name())) continue;
      memory.waits.erase(done->result_name());
      EXPECT_FALSE(Certify(plan_.program, {}).ok()) << "@" << name << " %" << done->result_name();
      memory.waits = waits;
      ++tried;
    }
  }
  EXPECT_GT(tried, 5);
}

}  // namespace
}  // namespace moe::passes
