// docs/passes.md lists every built-in pass with what it does, and the default pipeline with its reasons.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "moe/passes/builtin.h"
#include "moe/passes/pass.h"

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

}  // namespace
}  // namespace moe::passes
