// Commands that the documentation shows, and what they print; and flags that nobody else runs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "tools/run_tool.h"

namespace moe::tools {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kPage[] = "docs/inspecting.md";
constexpr char kModel[] = "testdata/models/small_test.textproto";

// Blocks of the page that begin with "$ inspect ARGUMENTS": "..." among them stands for those of the first
// such block, and a last line "..." for the rest of the output.
TEST(InspectingPage, ShowsWhatTheToolPrints) {
  ASSERT_OK_AND_ASSIGN(const std::string page, ReadFile(kPage));
  const std::vector<std::string> lines = absl::StrSplit(page, '\n');
  std::vector<std::string> fresh;
  std::string base;
  int blocks = 0;
  for (size_t i = 0; i < lines.size(); ++i) {
    fresh.push_back(lines[i]);
    absl::string_view command = lines[i];
    if (i == 0 || lines[i - 1] != "```" || !absl::ConsumePrefix(&command, "$ inspect ")) continue;
    ++blocks;
    SCOPED_TRACE(lines[i]);
    std::string arguments(command);
    if (absl::StartsWith(arguments, "...")) {
      arguments = absl::StrCat(base, arguments.substr(3));
    } else if (base.empty()) {
      base = arguments;
    }
    // Pictures go to a folder of the test.
    const std::string folder = ::testing::TempDir();
    arguments = absl::StrJoin(absl::StrSplit(arguments, "=buffers.svg"),
                              absl::StrCat("=", JoinPath(folder, "buffers.svg")));
    const Outcome o = RunShell(absl::StrCat(ToolPath("inspect"), " ", arguments, " 2>/dev/null"));
    ASSERT_EQ(o.code, 0) << o.output;
    std::vector<std::string> want = absl::StrSplit(o.output, '\n');
    while (!want.empty() && want.back().empty()) want.pop_back();
    size_t end = i + 1;
    while (end < lines.size() && lines[end] != "```") ++end;
    const bool cut = lines[end - 1] == "...";
    const size_t shown = end - i - 1 - cut;
    if (cut && want.size() > shown) {
      want.resize(shown);
      want.push_back("...");
    }
    const std::vector<std::string> have(lines.begin() + i + 1, lines.begin() + end);
    EXPECT_EQ(absl::StrJoin(have, "\n"), absl::StrJoin(want, "\n"));
    fresh.insert(fresh.end(), want.begin(), want.end());
    i = end - 1;
  }
  EXPECT_GE(blocks, 4);
  // What the page should be, for whoever changed what the tool prints.
  if (const char* outputs = std::getenv("TEST_UNDECLARED_OUTPUTS_DIR"); outputs != nullptr) {
    EXPECT_OK(WriteFile(JoinPath(outputs, "inspecting.md"), absl::StrJoin(fresh, "\n")));
  }
}

TEST(Inspect, ReadsPlanFilesAndPrintsJson) {
  const std::string folder = JoinPath(::testing::TempDir(), "inspect");
  ASSERT_OK(RemoveTree(folder));
  ASSERT_OK(MakeFolders(folder));
  const std::string text = JoinPath(folder, "text.txt"), run = JoinPath(folder, "run");
  std::string words;
  for (int i = 0; i < 3000; ++i) absl::StrAppend(&words, "the ", i % 13, " quick brown foxes\n");
  ASSERT_OK(WriteFile(text, words));
  const Outcome trained = RunShell(absl::StrCat(
      ToolPath("compile_and_train"), " --quiet --train_iters=2 --data_path=", text, " --run_dir=", run,
      " --num_layers=2 --hidden_size=32 --num_attention_heads=4 --num_query_groups=2 --seq_length=32",
      " --moe_ffn_hidden_size=32 --strategy='pp=2 dp=2 ep=2 microbatches=2' --global_batch_size=4",
      " --micro_batch_size=1"));
  ASSERT_EQ(trained.code, 0) << trained.output;
  const Outcome from_run = RunShell(absl::StrCat(ToolPath("inspect"), " --run=", run)),
                from_plan = RunShell(absl::StrCat(ToolPath("inspect"), " --plan=", run, "/plan.pb")),
                json = RunShell(absl::StrCat(ToolPath("inspect"), " --json --plan=", run, "/plan.pb"));
  ASSERT_EQ(from_run.code, 0) << from_run.output;
  EXPECT_THAT(from_run.output, StartsWith("strategy  pp=2 dp=2 ep=2 microbatches=2\n"));
  EXPECT_EQ(from_plan.output, from_run.output);
  ASSERT_EQ(json.code, 0) << json.output;
  const nlohmann::json parsed = nlohmann::json::parse(json.output, nullptr, false);
  ASSERT_FALSE(parsed.is_discarded()) << json.output;
  EXPECT_EQ(parsed.at("stages").size(), 2);
  const Outcome measured = RunShell(absl::StrCat(ToolPath("inspect"), " --run=", run, " --timeline=", folder,
                                                 "/timeline.svg --times=measured --step=1"));
  EXPECT_EQ(measured.code, 0) << measured.output;
  EXPECT_THAT(measured.output, HasSubstr("measured"));
  EXPECT_TRUE(FileExists(JoinPath(folder, "timeline.svg")));
  const Outcome diff = RunShell(absl::StrCat(ToolPath("inspect"), " --diff ", run, " ", run, "/plan.pb"));
  EXPECT_EQ(diff.code, 0) << diff.output;
  EXPECT_THAT(diff.output, HasSubstr("same"));
}

TEST(Bench, MeasuresAModelAndStrategyOfOnesOwn) {
  const std::string json = JoinPath(::testing::TempDir(), "bench.jsonl");
  const Outcome o =
      RunShell(absl::StrCat(ToolPath("bench"), " --only=step,memory --repeats=1 --model=", kModel,
                            " --strategy='dp=2 ep=2' --global_batch=4 --json=", json));
  ASSERT_EQ(o.code, 0) << o.output;
  EXPECT_THAT(o.output, HasSubstr("### "));
  ASSERT_OK_AND_ASSIGN(const std::string text, ReadFile(json));
  int rows = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const nlohmann::json row = nlohmann::json::parse(line.begin(), line.end(), nullptr, false);
    ASSERT_FALSE(row.is_discarded()) << line;
    EXPECT_TRUE(row.contains("table"));
    ++rows;
  }
  EXPECT_GT(rows, 3);
  for (const auto& [flags, part] : {std::pair<std::string, std::string>{"--only=stairs", "known: compile"},
                                    {"--model=/nowhere.textproto", "/nowhere.textproto"},
                                    {"--strategy=tp=zwei", "tp=zwei"},
                                    {"--json=/nowhere/out.jsonl", "/nowhere/out.jsonl"}}) {
    const Outcome bad = RunShell(absl::StrCat(ToolPath("bench"), " ", flags));
    EXPECT_EQ(bad.code, 1) << bad.output;
    EXPECT_THAT(bad.output, HasSubstr(part));
  }
}

}  // namespace
}  // namespace moe::tools
