// Passes in any order: whatever the pipeline and whatever it is given, what comes back is a status. Random pipelines over
// random inputs run in child processes, so that a crash or a pass that does not end is reported with its pipeline.
//
//   bazel test //moe/passes:any_order_test --test_arg=--pipelines=20000 --test_arg=--seed=7 --test_timeout=3600
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/text.h"
#include "moe/model/transformer.h"
#include "moe/passes/builtin.h"
#include "moe/passes/pipeline.h"
#include "moe/strategy/fold.h"
#include "moe/strategy/strategy.h"

ABSL_FLAG(int, pipelines, 300, "How many to draw.");
ABSL_FLAG(int, seed, 1, "Of the draws.");

namespace moe::passes {
namespace {

constexpr char kUnplaced[] = R"(module @m mesh<a=2; dp=a>
func @step(%x: f32[4, 8] {kind = "batch", name = "x"}) {
  %y = math.silu(%x) : f32[4, 8] at "layers.0.attn"
  %z = math.silu(%y) : f32[4, 8] at "head"
  return %z
})";
constexpr char kPlaced[] = R"(module @m mesh<a=2; dp=a>
func @step(%x: f32[4@dp, 8] {kind = "batch", name = "x"}) {
  %y = math.silu(%x) place<a0=dp> : f32[4@dp, 8] at "layers.0.attn"
  %z = math.silu(%y) place<a0=dp> : f32[4@dp, 8] at "head"
  return %z
})";
constexpr char kOtherName[] = R"(module @m mesh<tp=4>
func @f(%x: f32[8, 8] partial(tp)) {
  %a = comm.reduce_scatter(%x) {axes = [tp], dim = 0} : f32[8@tp, 8]
  %b = comm.all_gather(%a) {axes = [tp]} : f32[8, 8]
  return %b
})";
constexpr char kConversion[] = R"(module @m mesh<dp=2>
func @chunk0(%x: f32[8@dp, 4]) {
  %y = comm.convert(%x) {axes = [dp]} : f32[8, 4]
  return %y
})";
constexpr char kEmptyStep[] = "module @m\nfunc @step() {\n  return\n}";
constexpr char kEmptyChunks[] = "module @m\nfunc @chunk0() {\n  return\n}\nfunc @chunk1() {\n  return\n}";
constexpr char kNoFunction[] = "module @m";
constexpr char kNoFunctionButAMesh[] = "module @m mesh<pp=2, dp=2>";
constexpr const char* kTexts[] = {kUnplaced,  kPlaced,      kOtherName,  kConversion,
                                  kEmptyStep, kEmptyChunks, kNoFunction, kNoFunctionButAMesh};

constexpr const char* kWords[] = {
    "dp=1",
    "dp=2 ep=2 zero=1 checkpoint=selective bucket=64KiB",
    "pp=2 dp=2 tp=2 ep=2 etp=2 sp zero=1 microbatches=2 overlap=on moe_chunks=2",
    "pp=2 schedule=zb-h1 microbatches=2 bf16",
    "pp=2 schedule=dualpipe microbatches=4",
    "dp=2 ep=2 zero=3 f16 checkpoint=full overlap=on compress_dispatch=bf16 compress_grad=bf16",
    "cp=2 tp=2 vp expert_slots=6",
    "dp=2 checkpoint=auto checkpoint_budget=1MiB bf16 fp8_experts",
};

struct Draw {
  std::string words, text, pipeline;  // an empty text: the model
  std::string ToString() const {
    return absl::StrCat("strategy '", words, "', pipeline '", pipeline, "', input ",
                        text.empty() ? "the model" : text);
  }
};

class Drawer {
 public:
  explicit Drawer(int seed) : random_(seed) {
    for (const PassDef* pass : Passes().All()) names_.push_back(pass->name);
    for (const DefaultStep& step : DefaultSteps()) order_.emplace_back(step.step);
  }

  Draw Next() {
    Draw draw;
    draw.words = kWords[Below(std::size(kWords))];
    std::vector<std::string> steps;
    if (Below(3) > 0) {
      // The model as the first passes of the default pipeline leave it, some of them left out.
      const int prefix = Below(static_cast<int>(order_.size()) + 1);
      for (int i = 0; i < prefix; ++i) {
        if (Below(12) > 0) steps.push_back(order_[i]);
      }
    } else {
      draw.text = kTexts[Below(std::size(kTexts))];
    }
    for (int more = 1 + Below(8); more > 0; --more)
      steps.push_back(names_[Below(static_cast<int>(names_.size()))]);
    draw.pipeline = absl::StrJoin(steps, ",");
    return draw;
  }

 private:
  int Below(int n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }
  std::mt19937_64 random_;
  std::vector<std::string> names_, order_;
};

model::ModelConfig Config() {
  model::ModelConfig c;
  c.set_num_layers(2);
  c.set_hidden_size(16);
  c.set_num_attention_heads(4);
  c.set_num_key_value_heads(2);
  c.set_ffn_hidden_size(24);
  c.set_vocab_size(30);
  c.set_seq_length(8);
  c.set_num_experts(4);
  c.set_moe_router_topk(2);
  c.set_aux_loss_coeff(0.01);
  return model::ResolveModelConfig(c);
}

absl::Status RunDraw(const Draw& draw) {
  PassContext context;
  ASSIGN_OR_RETURN(context.strategy, strategy::ParseStrategy(draw.words));
  context.target.bucket_bytes = 1 << 16;
  context.target.f8_flops = 1e12;
  Program program;
  if (draw.text.empty()) {
    const model::ModelConfig config = Config();
    ASSIGN_OR_RETURN(
        program.module,
        model::BuildModel(config, {.global_batch = 8, .microbatches = context.strategy.microbatches}));
    ASSIGN_OR_RETURN(program.module->mesh(),
                     strategy::FoldMesh(context.strategy, config.num_key_value_heads()));
  } else {
    ASSIGN_OR_RETURN(program.module, ParseModule(draw.text));
  }
  return RunPipeline(Passes(), draw.pipeline, program, context).status();
}

// Runs draws [from, to) of the seed in a child. What it works on, and how many gave an error, it leaves in `shared`.
struct Shared {
  int at = 0, errors = 0;
};

TEST(AnyOrder, EndsInAStatus) {
  const int pipelines = absl::GetFlag(FLAGS_pipelines), seed = absl::GetFlag(FLAGS_seed);
  constexpr int kBatch = 50;
  constexpr rlim_t kSeconds = 60;  // of the processor, for a batch
  auto* shared = static_cast<Shared*>(
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(shared, MAP_FAILED);
  Drawer drawer(seed);
  int failures = 0;
  for (int done = 0; done < pipelines && failures < 5; done += kBatch) {
    std::vector<Draw> draws;
    for (int i = done; i < std::min(pipelines, done + kBatch); ++i) draws.push_back(drawer.Next());
    for (size_t first = 0; first < draws.size() && failures < 5; first = shared->at + 1) {
      shared->at = static_cast<int>(first);
      const pid_t child = ::fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        const rlimit limit = {kSeconds, kSeconds};
        ::setrlimit(RLIMIT_CPU, &limit);
        for (size_t i = first; i < draws.size(); ++i) {
          shared->at = static_cast<int>(i);
          if (!RunDraw(draws[i]).ok()) ++shared->errors;
        }
        ::_exit(0);
      }
      int status = 0;
      ASSERT_EQ(::waitpid(child, &status, 0), child);
      if (WIFEXITED(status) && WEXITSTATUS(status) == 0) break;
      ++failures;
      ADD_FAILURE() << "seed " << seed << ", pipeline " << done + shared->at << " ends by "
                    << (WIFSIGNALED(status) ? ::strsignal(WTERMSIG(status)) : "exit") << ": "
                    << draws[shared->at].ToString();
    }
  }
  std::cout << pipelines << " pipelines of seed " << seed << ", " << shared->errors << " end in an error\n";
  if (pipelines >= 100) {  // the draws are of both kinds
    EXPECT_GT(shared->errors, pipelines / 10);
    EXPECT_LT(shared->errors, pipelines * 9 / 10);
  }
  ::munmap(shared, sizeof(Shared));
}

absl::Status RunText(const std::string& pipeline, const std::string& text) {
  return RunDraw({.words = "dp=1", .text = text, .pipeline = pipeline});
}

TEST(AnyOrder, NamesWhatAPassLacksAndWhoProvidesIt) {
  const absl::StatusCode kFailed = absl::StatusCode::kFailedPrecondition;
  ExpectError(RunText("partition-stages", kPlaced), kFailed,
              "partition-stages needs a program that is not placed", "%x of @step is placed",
              "it cannot stand after shard");
  ExpectError(RunDraw({.words = "dp=2", .text = kUnplaced, .pipeline = "shard,partition-stages"}), kFailed,
              "partition-stages needs", "of @step is placed", "it cannot stand after shard");
  ExpectError(RunText("partition-stages,partition-stages", kUnplaced), kFailed, "needs a function @step",
              "there is no @step", "it cannot stand after partition-stages");
  ExpectError(RunText("split-phases", kUnplaced), kFailed, "split-phases needs the functions @chunk0, ...",
              "there is no @chunk0", "run partition-stages before it");
  ExpectError(RunText("plan-memory", kEmptyStep), kFailed, "plan-memory needs the actions of every stage",
              "run schedule before it");
  ExpectError(RunDraw({.words = "dp=2 bf16", .pipeline = "mixed-precision"}), kFailed,
              "mixed-precision needs a function @update", "run autodiff before it");
  ExpectError(RunDraw({.words = "dp=2 compress_grad=bf16", .text = kConversion, .pipeline = "compress"}),
              kFailed, "%y of @chunk0 is a comm.convert", "run insert-collectives before it");
}

// What the strategy does not ask for needs nothing.
TEST(AnyOrder, APassThatIsNotAskedForNeedsNothing) {
  EXPECT_OK(RunText("mixed-precision,compress,context-parallel,fp8-experts,checkpoint", kUnplaced));
}

// A fact that a pass needs is provided by another, or ended by one, or is the model's own.
TEST(AnyOrder, EveryNeedHasAPassThatProvidesOrEndsIt) {
  std::map<Fact, std::string> needed;
  for (const PassDef* pass : Passes().All()) {
    for (const Fact fact : pass->needs) needed.emplace(fact, pass->name);
  }
  for (const PassDef* pass : Passes().All()) {
    for (const auto* list : {&pass->provides, &pass->ends}) {
      for (const Fact fact : *list) needed.erase(fact);
    }
  }
  for (const auto& [fact, pass] : needed) ADD_FAILURE() << pass << " needs " << DescribeFact(fact);
}

}  // namespace
}  // namespace moe::passes

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  absl::ParseCommandLine(argc, argv);
  return RUN_ALL_TESTS();
}
