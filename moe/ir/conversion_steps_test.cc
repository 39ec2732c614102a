#include "moe/ir/conversion_steps.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/text.h"

namespace moe {
namespace {

Mesh TestMesh() { return Mesh({{"dp", 2}, {"ep", 4}, {"tp", 2}}); }

TEST(ConversionSteps, TextRoundTrips) {
  const std::vector<ConversionStep> steps = {
      {StepKind::kReduceScatter, {{2, Placement::kSum, 1}}},
      {StepKind::kAllToAll, {{1, 0, 3}, {0, 2, 0}}},
      {StepKind::kAllGather, {{0, 0, Placement::kNone}}},
      {StepKind::kAllReduce, {{1, Placement::kMax, Placement::kNone}}},
  };
  const std::string text = PrintSteps(steps, TestMesh());
  EXPECT_EQ(text,
            "reduce_scatter tp:sum>1; all_to_all ep:0>3 dp:2>0; all_gather dp:0>-; all_reduce ep:max>-");
  ASSERT_OK_AND_ASSIGN(const std::vector<ConversionStep> parsed, ParseSteps(text, TestMesh()));
  EXPECT_EQ(parsed, steps);
  EXPECT_EQ(parsed[1].axes(), (AxisList{1, 0}));
  ASSERT_OK_AND_ASSIGN(const std::vector<ConversionStep> none, ParseSteps("", TestMesh()));
  EXPECT_TRUE(none.empty());
}

TEST(ConversionSteps, ErrorsSayWhatIsLegal) {
  const auto error = [](absl::string_view text, absl::string_view part) {
    ExpectError(ParseSteps(text, TestMesh()), absl::StatusCode::kInvalidArgument, std::string(part));
  };
  error("all_scatter tp:0>1", "known: zero, slice");
  error("slice", "moves no axis");
  error("slice tp", "axis:from>to");
  error("slice tp:1>0>", "unknown role");
  error("slice zz:->0", "unknown axis");
  error("slice tp:->x", "unknown role");
  error("slice tp:->-1", "unknown role");
  error("all_to_all tp:0>1 tp:1>0", "twice");
}

// The type that `text` has in a function on TestMesh.
Type TypeOf(absl::string_view text) {
  absl::StatusOr<std::unique_ptr<Module>> module = ParseModule(
      absl::StrCat("module @m mesh<dp=2, ep=4, tp=2> {}\nfunc @f(%x: ", text, ") {\n  return %x\n}\n"));
  EXPECT_OK(module.status());
  return (*module)->Find("f")->args()[0]->type();
}

// Operand, op and attributes -> result, and back: the types tell the step.
TEST(ConversionSteps, OperandAndStepTellTheResultAndTypesTheStep) {
  const struct {
    const char *from, *op, *attributes, *to, *step;
  } kCases[] = {
      {"f32[8, 16] partial(tp)", "all_reduce", "axes = [tp]", "f32[8, 16]", "all_reduce tp:sum>-"},
      {"f32[8@dp, 16] partial(max:tp)", "all_reduce", "axes = [tp]", "f32[8@dp, 16]", "all_reduce tp:max>-"},
      {"f32[8@ep, 16] partial(dp, tp)", "reduce_scatter", "axes = [tp, dp], dim = 1", "f32[8@ep, 16@tp.dp]",
       "reduce_scatter tp:sum>1 dp:sum>1"},
      {"f32[8@dp.ep, 16]", "all_gather", "axes = [ep]", "f32[8@dp, 16]", "all_gather ep:0>-"},
      {"f32[8@dp.ep, 16@tp]", "all_gather", "axes = [tp, ep]", "f32[8@dp, 16]", "all_gather tp:1>- ep:0>-"},
      {"f32[8@dp, 16@tp.ep]", "all_to_all", "axes = [ep], dim = 0", "f32[8@dp.ep, 16@tp]",
       "all_to_all ep:1>0"},
      {"f32[8, 4, 1, ~5<=32, 16@tp]", "all_to_all", "axes = [tp], dim = 0", "f32[8@tp, 4, 1, ~5<=32, 16]",
       "all_to_all tp:4>0"},
      {"f32[8, 16]", "slice", "axes = [ep], dim = 1", "f32[8, 16@ep]", "slice ep:->1"},
      {"f32[8, 16] partial(tp)", "zero", "axes = [dp]", "f32[8, 16] partial(dp, tp)", "zero dp:->sum"},
      {"f32[8@dp, 16]", "rotate", "axes = [dp]", "f32[8@dp, 16]", "rotate dp:0>0"},
  };
  for (const auto& c : kCases) {
    const std::string text =
        absl::StrCat("module @m mesh<dp=2, ep=4, tp=2> {}\nfunc @f(%x: ", c.from, ") {\n  %y = comm.", c.op,
                     "(%x) {", c.attributes, "}\n  return %y\n}\n");
    SCOPED_TRACE(text);
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> module, ParseModule(text));
    const Mesh& mesh = module->mesh();
    const Node& n = *module->Find("f")->Nodes()[0];
    EXPECT_EQ(TypeToString(n.type(), mesh), c.to);
    ASSERT_OK_AND_ASSIGN(const std::vector<ConversionPart> parts, ConversionParts(n, mesh));
    EXPECT_EQ(PrintSteps(parts[0].steps, mesh), c.step);
    const Attributes attributes =
        ConversionAttributes(parts[0].from.type().placement, n.type().placement, parts[0].steps, mesh);
    EXPECT_EQ(attributes, (Attributes{{"axes", n.axes()}}));
  }
}

TEST(ConversionSteps, StepsAreSaidWhereTypesDoNotTellThem) {
  const Type from = TypeOf("f32[8@dp.ep, 16]"), to = TypeOf("f32[8, 16]");
  for (const char* text : {"all_gather ep:0>-; all_gather dp:0>-", "all_gather ep:0>-; all_to_all dp:0>1"}) {
    ASSERT_OK_AND_ASSIGN(const std::vector<ConversionStep> steps, ParseSteps(text, TestMesh()));
    const Attributes attributes = ConversionAttributes(from.placement, to.placement, steps, TestMesh());
    EXPECT_EQ(attributes, (Attributes{{"axes", AxisList{1, 0}}, {"steps", std::string(text)}}));
  }
}

TEST(ConversionSteps, ResultsThatDoNotFollow) {
  const auto error = [](absl::string_view from, StepKind kind, const AxisList& axes, std::optional<int> dim,
                        absl::string_view part) {
    ExpectError(TypeAfter(kind, TypeOf(from), axes, dim, TestMesh()), absl::StatusCode::kInvalidArgument,
                std::string(part));
  };
  error("f32[8, 16]", StepKind::kAllReduce, {2}, {}, "replicated over axis 'tp'; it must be partial");
  error("f32[8@tp, 16]", StepKind::kAllReduce, {2}, {}, "a shard of dim 0 over axis 'tp'");
  error("f32[8@dp.ep, 16]", StepKind::kAllGather, {0}, {}, "leave it from the last one on");
  error("f32[8@dp, 16]", StepKind::kAllGather, {0}, 1, "shards dim 0, not dim 1");
  error("f32[8, 16]", StepKind::kSlice, {1}, {}, "needs `dim`");
  error("f32[8, 16]", StepKind::kSlice, {1}, 2, "dim = 2");
  error("f32[8, 4, 1, ~5<=32, 16]", StepKind::kSlice, {1}, 3, "not a ragged one");
  error("f32[6, 16]", StepKind::kSlice, {1}, 0, "dim 0 of 6 is not divisible by the 4 ranks of ep");
  error("f32[8@dp, 16]", StepKind::kAllToAll, {0}, 0, "shards dim 0 already");
  error("f32[8@dp, 16]", StepKind::kPermute, {0}, {}, "give it");
}

}  // namespace
}  // namespace moe
