#include "moe/testing/pass_test.h"

#include <gmock/gmock.h>

#include "absl/strings/match.h"
#include "moe/ir/diff.h"
#include "moe/ir/text.h"
#include "moe/ir/verifier.h"
#include "moe/passes/pipeline.h"
#include "moe/testing/check_lines.h"
#include "moe/testing/validate_passes.h"

namespace moe::testing {
namespace {

// parse(print(m)) == m
void ExpectRoundTrip(const Module& module, absl::string_view when) {
  const std::string text = PrintModule(module);
  const absl::StatusOr<std::unique_ptr<Module>> again = ParseModule(text);
  ASSERT_TRUE(again.ok()) << when << ": " << again.status() << "\n" << text;
  EXPECT_EQ(DiffModules(module, **again), "") << when << ":\n" << text;
}

passes::PassRegistry Only(const passes::Pass& pass) {
  passes::PassRegistry registry;
  registry.Add({"pass-under-test", "", pass});
  return registry;
}

}  // namespace

bool PassTest::Load(absl::string_view text) {
  program_ = Program();
  results_.clear();
  absl::StatusOr<std::unique_ptr<Module>> module = ParseModule(text);
  EXPECT_TRUE(module.ok()) << module.status() << "\n" << text;
  if (!module.ok()) return false;
  const absl::Status verified = Verify(**module);
  EXPECT_TRUE(verified.ok()) << "the input of the test: " << verified;
  ExpectRoundTrip(**module, "the input of the test");
  program_.module = *std::move(module);
  return verified.ok();
}

void PassTest::Run(const passes::PassRegistry& registry, absl::string_view pipeline, absl::string_view text,
                   const passes::PassContext& context) {
  if (!Load(text)) return;
  const std::unique_ptr<Module> before = CloneModule(*program_.module);
  absl::StatusOr<std::vector<passes::PassResult>> results =
      passes::RunPipeline(registry, pipeline, program_, context);
  ASSERT_TRUE(results.ok()) << results.status() << "\n" << PrintModule(*program_.module);
  results_ = *std::move(results);
  bool changed = false;
  for (const passes::PassResult& result : results_) changed = changed || result.changed;
  const std::string diff = DiffModules(*before, *program_.module);
  if (!changed) {
    EXPECT_EQ(diff, "") << "the pass says that it changed nothing";
  }
  const absl::Status verified = Verify(*program_.module);
  EXPECT_TRUE(verified.ok()) << verified << "\n" << PrintModule(*program_.module);
  ExpectRoundTrip(*program_.module, "after the pass");
  if (!changed || !runs_ || !verified.ok()) return;
  Program was;
  was.module = CloneModule(*before);
  const absl::Status same = PassValidator({.execute = false}).Compare("under test", was, program_);
  EXPECT_TRUE(same.ok()) << same << "\n" << PrintModule(*program_.module);
}

void PassTest::ExpectRewrite(absl::string_view pipeline, absl::string_view text,
                             const passes::PassContext& context) {
  Run(passes::RegisteredPasses(), pipeline, text, context);
  if (HasFatalFailure() || results_.empty()) return;
  const absl::Status matched = CheckLines(text, PrintModule(*program_.module));
  EXPECT_TRUE(matched.ok()) << matched.message();
}

void PassTest::ExpectRewrite(const passes::Pass& pass, absl::string_view text,
                             const passes::PassContext& context) {
  Run(Only(pass), "pass-under-test", text, context);
  if (HasFatalFailure() || results_.empty()) return;
  const absl::Status matched = CheckLines(text, PrintModule(*program_.module));
  EXPECT_TRUE(matched.ok()) << matched.message();
}

void PassTest::ExpectUnchanged(const passes::Pass& pass, absl::string_view text,
                               const passes::PassContext& context) {
  Run(Only(pass), "pass-under-test", text, context);
  if (HasFatalFailure() || results_.empty()) return;
  EXPECT_FALSE(results_[0].changed) << PrintModule(*program_.module);
}

void PassTest::ExpectPassError(const passes::Pass& pass, absl::string_view text, absl::StatusCode code,
                               const std::vector<std::string>& parts, const passes::PassContext& context) {
  if (!Load(text)) return;
  const absl::StatusOr<bool> result = pass(program_, context);
  EXPECT_EQ(result.status().code(), code) << result.status();
  for (const std::string& part : parts) {
    EXPECT_THAT(std::string(result.status().message()), ::testing::HasSubstr(part));
  }
}

}  // namespace moe::testing
