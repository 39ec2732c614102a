#include "tools/opt.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "moe/base/status_matchers.h"
#include "moe/ir/text.h"

namespace moe {
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
  std::vector<PassResult> results;
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

TEST(Opt, DescribesEveryPass) {
  const std::string text = DescribePasses();
  for (const PassDef* pass : Passes().All()) {
    EXPECT_THAT(text, ::testing::HasSubstr(pass->name));
    EXPECT_FALSE(pass->doc.empty()) << pass->name;
  }
}

}  // namespace
}  // namespace moe
