// What the pages show is what there is: C++ stands in a file of the examples, programs parse and verify, commands name
// targets and flags that exist.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/text.h"
#include "moe/ir/verifier.h"
#include "tools/run_tool.h"

namespace moe {
namespace {

const std::vector<std::string>& Pages() {
  static const auto& pages = *new std::vector<std::string>{"CONTRIBUTING.md",
                                                           "README.md",
                                                           "docs/architecture.md",
                                                           "docs/benchmarks.md",
                                                           "docs/gpu.md",
                                                           "docs/inspecting.md",
                                                           "docs/ir.md",
                                                           "docs/ops.md",
                                                           "docs/parallelism.md",
                                                           "docs/passes.md",
                                                           "docs/plans.md",
                                                           "docs/precision.md",
                                                           "docs/processes.md",
                                                           "docs/reliability.md",
                                                           "docs/limits.md",
                                                           "docs/runs.md",
                                                           "docs/schedules.md",
                                                           "docs/training.md",
                                                           "docs/writing_a_pass.md"};
  return pages;
}

std::string Read(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path);
  EXPECT_OK(text.status());
  return text.ok() ? *std::move(text) : "";
}

struct Block {
  std::string language, text;
};
std::vector<Block> BlocksOf(const std::string& page) {
  std::vector<Block> blocks;
  bool inside = false;
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(Read(page), '\n'))) {
    if (absl::StartsWith(line, "```")) {
      inside = !inside;
      if (inside) blocks.push_back({line.substr(3), ""});
    } else if (inside) {
      absl::StrAppend(&blocks.back().text, line, "\n");
    }
  }
  EXPECT_FALSE(inside) << page << ": a block that does not end";
  return blocks;
}

// The files of the example that docs/writing_a_pass.md walks through.
std::string Example() {
  const std::string folder = "examples/fuse_reduce_scatter_all_gather/";
  return absl::StrCat(Read(folder + "fuse_reduce_scatter_all_gather.cc"),
                      Read(folder + "fuse_reduce_scatter_all_gather_test.cc"), Read(folder + "example.moe"));
}

TEST(Pages, CodeIsThatOfTheExample) {
  const std::string example = Example();
  int blocks = 0;
  for (const std::string& page : Pages()) {
    const bool walks_through = page == "docs/writing_a_pass.md";
    for (const Block& b : BlocksOf(page)) {
      if (b.language != "cpp" && !walks_through) continue;
      ++blocks;
      EXPECT_TRUE(absl::StrContains(example, b.text)) << page << " shows other code:\n" << b.text;
    }
  }
  EXPECT_GE(blocks, 4);
}

TEST(Pages, ThePassIsShort) {
  for (const Block& b : BlocksOf("docs/writing_a_pass.md")) {
    EXPECT_LT(std::count(b.text.begin(), b.text.end(), '\n'), 15) << b.text;
  }
}

TEST(Pages, ProgramsAreLegal) {
  int programs = 0;
  for (const std::string& page : Pages()) {
    for (const Block& b : BlocksOf(page)) {
      if (!absl::StartsWith(b.text, "module @")) continue;
      ++programs;
      SCOPED_TRACE(absl::StrCat(page, ":\n", b.text));
      ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> module, ParseModule(b.text));
      EXPECT_OK(Verify(*module));
    }
  }
  EXPECT_GE(programs, 2);
}

TEST(Pages, NameTargetsThatExist) {
  const std::vector<std::string> lines =
      absl::StrSplit(absl::StrCat(Read("docs/named_targets"), Read("docs/with_toolkit.txt")), '\n');
  const std::set<std::string> known(lines.begin(), lines.end());
  for (const std::string& page : Pages()) {
    const std::string text = Read(page);
    for (size_t at = text.find("//"); at != std::string::npos; at = text.find("//", at + 2)) {
      size_t end = at + 2;
      while (end < text.size() &&
             (absl::ascii_isalnum(text[end]) || absl::StrContains("_/:", text.substr(end, 1))))
        ++end;
      const std::string label = text.substr(at, end - at);
      const size_t colon = label.find(':');
      if (colon == std::string::npos || colon + 1 == label.size()) continue;  // an address, or a package
      EXPECT_TRUE(known.count(label) || known.count(label + "_emulated"))
          << page << " names " << label
          << "; if there is such a target, add it to named_targets in docs/BUILD";
    }
  }
}

// The names of the flags that a tool has.
const std::set<std::string>& FlagsOf(const std::string& tool) {
  static auto& flags = *new std::map<std::string, std::set<std::string>>;
  const auto [it, fresh] = flags.try_emplace(tool);
  if (!fresh) return it->second;
  const std::string help = tools::RunShell(absl::StrCat(tools::ToolPath(tool), " --helpfull")).output;
  for (absl::string_view line : absl::StrSplit(help, '\n')) {
    line = absl::StripLeadingAsciiWhitespace(line);
    if (absl::ConsumePrefix(&line, "--")) it->second.emplace(line.substr(0, line.find(' ')));
  }
  return it->second;
}

// What stands behind `bazel run //tools:NAME`, or behind the tool itself at the start of a line.
void CheckFlags(const std::string& tool, absl::string_view arguments, const std::string& where) {
  arguments = arguments.substr(0, std::min(arguments.find(" #"), arguments.find('`')));
  for (absl::string_view word : absl::StrSplit(arguments, ' ', absl::SkipEmpty())) {
    if (!absl::ConsumePrefix(&word, "--") || word.empty() || absl::StartsWith(word, "//")) continue;
    std::string flag(word.substr(0, word.find('=')));
    while (!flag.empty() && !absl::ascii_isalnum(flag.back())) flag.pop_back();  // punctuation of a sentence
    const std::set<std::string>& known = FlagsOf(tool);
    EXPECT_TRUE(known.count(flag) || (absl::StartsWith(flag, "no") && known.count(flag.substr(2))))
        << where << ": " << tool << " has no --" << flag;
  }
}

TEST(Pages, CommandsUseFlagsThatExist) {
  const std::vector<std::string> tools = {"bench", "compile_and_train", "generate", "inspect", "opt"};
  int commands = 0;
  for (const std::string& page : Pages()) {
    std::string text = Read(page);
    for (size_t at; (at = text.find(" \\\n")) != std::string::npos;) text.replace(at, 3, " ");
    for (const std::string& line : std::vector<std::string>(absl::StrSplit(text, '\n'))) {
      for (const std::string& tool : tools) {
        absl::string_view rest = absl::StripLeadingAsciiWhitespace(line);
        absl::ConsumePrefix(&rest, "$ ");
        const size_t run = rest.find("bazel run "), name = rest.find(absl::StrCat("//tools:", tool));
        if (run != absl::string_view::npos && name != absl::string_view::npos && run < name) {
          const size_t arguments = rest.find(" -- ", name);
          if (arguments == absl::string_view::npos) continue;
          rest.remove_prefix(arguments + 4);
        } else if (!absl::ConsumePrefix(&rest, tool) || !absl::StartsWith(rest, " -")) {
          continue;
        }
        ++commands;
        CheckFlags(tool, rest, page);
      }
    }
  }
  EXPECT_GT(commands, 12);
}

}  // namespace
}  // namespace moe
