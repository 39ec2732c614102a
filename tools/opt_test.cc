#include "tools/opt.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "moe/base/status_matchers.h"
#include "moe/ir/text.h"
#include "moe/passes/builtin.h"

namespace moe::tools {
namespace {

constexpr char kModule[] = R"(module @m
func @f(%x: f32[8]) {
  %a = math.silu(%x) : f32[8]
  %b = math.silu(%x) : f32[8]
  %c = math.add(%a, %b) : f32[8]
  return %c
}
)";

TEST(Opt, PrintsWhatItReadWithoutPasses) {
  ASSERT_OK_AND_ASSIGN(const std::string out, Optimize(kModule, "f.moe", {}));
  EXPECT_EQ(out, kModule);
}

TEST(Opt, RunsAPipeline) {
  OptOptions options;
  std::vector<passes::PassResult> results;
  options.passes = "common-subexpressions";
  options.results = &results;
  ASSERT_OK_AND_ASSIGN(const std::string out, Optimize(kModule, "f.moe", options));
  EXPECT_THAT(out, ::testing::HasSubstr("math.add(%a, %a)"));
  ASSERT_EQ(results.size(), 1);
  EXPECT_TRUE(results[0].changed);
}

TEST(Opt, ErrorsNameTheFileAndTheLine) {
  constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectError(Optimize("module @m\nfunc @f(%x: f32[8]) {\n  %a = math.silo(%x)\n", "f.moe", {}), kInvalid,
              "f.moe:3:8: unknown op 'math.silo'", "math.silu");
  OptOptions options;
  options.passes = "fuze";
  ExpectError(Optimize(kModule, "f.moe", options), kInvalid, "unknown pass 'fuze'", "remove-dead-nodes");
  options.passes = "";
  options.strategy = "tp=zwei";
  ExpectError(Optimize(kModule, "f.moe", options), kInvalid, "--strategy");
}

// Some arguments placed, the nodes not: shard places them, whatever runs before it.
TEST(Opt, ShardPlacesWhatTheTextLeavesOpen) {
  constexpr char kHalfPlaced[] = R"(module @m mesh<dp=2, tp=2>
state @w1 : f32[16, 32] {kind = "parameter", role = "up"}
state @w2 : f32[32@tp, 16] {kind = "parameter", role = "down"}
func @f(%x: f32[8@dp, 4, 16], %w1: f32[16, 32] {kind = "state", name = "w1"},
        %w2: f32[32, 16] {kind = "state", name = "w2"}) {
  %h = math.einsum(%x, %w1) {eq = "b s h, h f -> b s f"} : f32[8, 4, 32]
  %again = math.einsum(%x, %w1) {eq = "b s h, h f -> b s f"}
  %sum = math.add(%h, %again) : f32[8, 4, 32]
  %a = math.silu(%sum) : f32[8, 4, 32]
  %y = math.einsum(%a, %w2) {eq = "b s f, f h -> b s h"} : f32[8, 4, 16]
  %z = math.silu(%y)
  return %z
}
)";
  OptOptions options;
  options.strategy = "dp=2 tp=2";
  options.passes = "common-subexpressions,shard,insert-collectives";
  ASSERT_OK_AND_ASSIGN(const std::string out, Optimize(kHalfPlaced, "f.moe", options));
  EXPECT_THAT(out, ::testing::HasSubstr("f32[8@dp, 4, 32@tp]"));
  EXPECT_THAT(out, ::testing::HasSubstr("f32[8@dp, 4, 16] partial(tp)"));
  EXPECT_THAT(out, ::testing::HasSubstr("comm.all_reduce(%y)"));
  options.passes.clear();
  ASSERT_OK(Optimize(out, "placed.moe", options));
  // Without a pass that places them, what the text leaves open is an error.
  for (const char* passes : {"", "common-subexpressions", "insert-collectives"}) {
    options.passes = passes;
    ExpectError(Optimize(kHalfPlaced, "f.moe", options), absl::StatusCode::kInvalidArgument, "f.moe",
                "placed on mesh axes, but its factors are not");
  }
  options.passes = "shard";
  options.pipeline.disable_passes = {"shard"};
  ExpectError(Optimize(kHalfPlaced, "f.moe", options), absl::StatusCode::kInvalidArgument, "its factors");
}

TEST(Opt, DescribesEveryPass) {
  const std::string text = DescribePasses();
  for (const passes::PassDef* pass : passes::Passes().All()) {
    EXPECT_THAT(text, ::testing::HasSubstr(pass->name));
    EXPECT_FALSE(pass->doc.empty()) << pass->name;
  }
  for (const passes::DefaultStep& step : passes::DefaultSteps()) {
    EXPECT_THAT(text, ::testing::HasSubstr(std::string(step.reason)));
  }
}

}  // namespace
}  // namespace moe::tools
