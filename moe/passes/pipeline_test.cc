#include "moe/passes/pipeline.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/builder.h"
#include "moe/ir/text.h"

namespace moe::passes {
namespace {

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

class PipelineTest : public ::testing::Test {
 protected:
  PipelineTest() {
    registry_.Add(
        {"nothing", "", [](Program&, const PassContext&) -> absl::StatusOr<bool> { return false; }});
    registry_.Add(
        {"double", "", ForEachFunction([](Function& f, const PassContext& context) -> absl::StatusOr<bool> {
           Builder b(&f);
           const absl::StatusOr<Value> y = b.Create("math.add", {f.result(0), f.result(0)});
           if (!y.ok()) return y.status();
           const absl::StatusOr<Value> dead = b.Create("math.silu", {*y});
           if (!dead.ok()) return dead.status();
           f.SetResult(0, *y);
           context.Note(absl::StrCat("doubled @", f.name(), " ", context.OptionOr("how", "plainly")));
           return true;
         })});
    registry_.Add({"break", "", ForEachFunction([](Function& f, const PassContext&) -> absl::StatusOr<bool> {
                     f.result(0).node->SetType(0, Type(DType::kF32, {3}));
                     return true;
                   })});
    registry_.Add(
        {"erase-used", "", ForEachFunction([](Function& f, const PassContext&) -> absl::StatusOr<bool> {
           f.Erase(f.NodesOf("math.silu")[0]);
           return true;
         })});
    registry_.Add({"fail", "", ForEachFunction([](Function&, const PassContext&) -> absl::StatusOr<bool> {
                     return absl::FailedPreconditionError("cannot");
                   })});
    registry_.Add({"refuse", "", [](Program&, const PassContext&) -> absl::StatusOr<bool> {
                     return absl::FailedPreconditionError("refuse: not this one");
                   }});
    program_.module =
        *ParseModule("module @m\nfunc @f(%x: f32[8]) {\n  %y = math.silu(%x)\n  return %y\n}\n");
  }

  absl::StatusOr<std::vector<PassResult>> Run(absl::string_view pipeline,
                                              const PipelineOptions& options = {}) {
    return RunPipeline(registry_, pipeline, program_, PassContext(), options);
  }

  PassRegistry registry_;
  Program program_;
};

TEST(ParsePipeline, NamesAndOptions) {
  ASSERT_OK_AND_ASSIGN(const std::vector<PipelineStep> steps,
                       ParsePipeline(" autodiff, fuse{only=adamw, trace},fuse{}"));
  ASSERT_EQ(steps.size(), 3);
  EXPECT_EQ(steps[1].pass, "fuse");
  EXPECT_EQ(steps[1].options, (std::map<std::string, std::string>{{"only", "adamw"}, {"trace", "true"}}));
  EXPECT_TRUE(steps[2].options.empty());
  ASSERT_OK_AND_ASSIGN(const std::vector<PipelineStep> none, ParsePipeline("  "));
  EXPECT_TRUE(none.empty());
  ExpectError(ParsePipeline("a,"), kInvalid, "character 3", "name of a pass");
  ExpectError(ParsePipeline("a b"), kInvalid, "character 3", "expected ','");
  ExpectError(ParsePipeline("a{x=1"), kInvalid, "expected ',' or '}'");
  ExpectError(ParsePipeline("a{x=1,x=2}"), kInvalid, "'x' appears twice");
}

TEST_F(PipelineTest, ReportsWhatEachPassDid) {
  ASSERT_OK_AND_ASSIGN(const std::vector<PassResult> results, Run("nothing,double{how=twice},double"));
  ASSERT_EQ(results.size(), 3);
  EXPECT_FALSE(results[0].changed);
  EXPECT_TRUE(results[1].changed);
  EXPECT_EQ(results[1].nodes_before, 1);
  EXPECT_EQ(results[1].nodes_after, 2);  // the dead node is gone
  EXPECT_EQ(results[1].notes, std::vector<std::string>{"doubled @f twice"});
  EXPECT_EQ(results[2].notes, std::vector<std::string>{"doubled @f plainly"});
  EXPECT_EQ(program_.notes.size(), 2);
}

TEST_F(PipelineTest, VerifiesAfterEachChange) {
  ExpectError(Run("double,break,nothing"), kInvalid, "after break", "%add = math.add");
  PipelineOptions options;
  options.verify = false;
  EXPECT_OK(Run("nothing", options));
}

TEST_F(PipelineTest, NamesThePassThatErasesAUsedNode) {
  ExpectError(Run("double,erase-used"), kInvalid, "after erase-used", "%add = math.add",
              "operand 0, %y, is a value of a node that was erased");
}

TEST_F(PipelineTest, NamesThePassAndTheFunctionOfAnError) {
  ExpectError(Run("double,fail"), absl::StatusCode::kFailedPrecondition, "fail: @f: cannot");
  ExpectError(Run("double,fuze"), kInvalid, "unknown pass 'fuze'",
              "break, double, erase-used, fail, nothing");
}

TEST_F(PipelineTest, NamesOnceThePassThatNamesItself) {
  EXPECT_EQ(Run("refuse").status().message(), "refuse: not this one");
}

TEST_F(PipelineTest, DisabledPassesDoNotRun) {
  PipelineOptions options;
  options.disable_passes = {"fail"};
  EXPECT_OK(Run("double,fail", options));
  options.disable_passes = {"fial"};
  ExpectError(Run("double", options), kInvalid, "disable_passes", "'fial'");
}

TEST_F(PipelineTest, DumpsParseAgain) {
  PipelineOptions options;
  options.dump_to = JoinPath(::testing::TempDir(), "dumps");
  options.dump_pass_re = "dou|nothing";
  ASSERT_OK(RemoveTree(options.dump_to));
  ASSERT_OK(Run("nothing,double", options));
  ASSERT_OK_AND_ASSIGN(const std::vector<std::string> files, ListFolder(options.dump_to));
  EXPECT_EQ(files, (std::vector<std::string>{"module_0001.m.0000.before_nothing.txt",
                                             "module_0001.m.0002.after_double.txt"}));
  ASSERT_OK_AND_ASSIGN(const std::string text, ReadFile(JoinPath(options.dump_to, files[1])));
  EXPECT_OK(ParseModule(text));
  options.dump_pass_re = "(";
  ExpectError(Run("double", options), kInvalid, "dump_pass_re");
}

TEST_F(PipelineTest, ValidatesBeforeAgainstAfter) {
  PipelineOptions options;
  std::vector<std::string> seen;
  options.validate = [&](const std::string& pass, const Program& before,
                         const Program& after) -> absl::Status {
    seen.push_back(absl::StrCat(pass, " ", before.module->Find("f")->num_nodes(), " ",
                                after.module->Find("f")->num_nodes()));
    return seen.size() == 2 ? absl::InternalError("results differ") : absl::OkStatus();
  };
  ExpectError(Run("double,nothing,double,double", options), absl::StatusCode::kInternal, "results differ");
  EXPECT_EQ(seen, (std::vector<std::string>{"double 1 2", "double 2 3"}));
}

TEST_F(PipelineTest, NotesWhichPassReplacedANodeOfTheModel) {
  // The update has another node of the name; it is none of the model's.
  program_.module = *ParseModule(
      "module @m\nfunc @chunk0(%x: f32[8]) {\n  %y = math.silu(%x)\n  return %y\n}\n"
      "func @update(%x: f32[8]) {\n  %gone = math.mul(%x, %x)\n  return %gone\n}\n");
  program_.inventory = {{"math.silu", "y", {0}, ""}, {"math.mul", "gone", {0}, ""}};
  ASSERT_OK(Run("nothing,double"));
  EXPECT_EQ(program_.inventory[0].rewritten_by, "");
  EXPECT_EQ(program_.inventory[1].rewritten_by, "double");
}

}  // namespace
}  // namespace moe::passes
