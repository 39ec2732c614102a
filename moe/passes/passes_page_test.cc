// docs/passes.md lists every built-in pass with what it does, and the default pipeline with its reasons;
// docs/plans.md every strategy word.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "moe/passes/builtin.h"
#include "moe/passes/pass.h"
#include "moe/passes/strategy.h"

namespace moe::passes {
namespace {

TEST(PassesPage, ListsEveryPass) {
  ASSERT_OK_AND_ASSIGN(const std::string page, ReadFile("docs/passes.md"));
  for (const PassDef* pass : Passes().All()) {
    EXPECT_TRUE(absl::StrContains(page, absl::StrCat("| `", pass->name, "` | ", pass->doc, " |")))
        << pass->name;
  }
  std::string order;
  for (const DefaultStep& s : DefaultSteps())
    absl::StrAppend(&order, "| `", s.step, "` | ", s.reason, " |\n");
  EXPECT_TRUE(absl::StrContains(page, order)) << order;
}

TEST(PlansPage, ListsEveryStrategyWord) {
  ASSERT_OK_AND_ASSIGN(const std::string page, ReadFile("docs/plans.md"));
  const std::string error(ParseStrategy("no-such-word=1").status().message());
  const size_t at = error.find("known: ");
  ASSERT_NE(at, std::string::npos) << error;
  const std::string known = error.substr(at + 7);
  const std::vector<std::string> words = absl::StrSplit(known, ' ', absl::SkipEmpty());
  EXPECT_GT(words.size(), 10);
  for (const std::string& word : words) {
    EXPECT_TRUE(absl::StrContains(page, absl::StrCat("| `", word, "` |"))) << word;
  }
}

}  // namespace
}  // namespace moe::passes
