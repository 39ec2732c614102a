#include "moe/strategy/page.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/strategy/word.h"

namespace moe::strategy {
namespace {

std::string Quoted(absl::string_view text) { return absl::StrCat("`", text, "`"); }

// "`tp=`"; of a switch or a choice that is its own word, what can be written: "`sp`", "`bf16`, `f16`".
std::string Written(const Word& w) {
  if (w.is_switch) return Quoted(w.Spell(w.Value(Strategy()) == "true" ? "false" : "true"));
  if (!w.is_bare) return Quoted(absl::StrCat(w.name, "="));
  std::vector<std::string> values;
  for (const Word::FlagOf& f : w.flags) values.push_back(Quoted(f.value));
  return absl::StrJoin(values, ", ");
}

std::string Flags(const Word& w) {
  std::vector<std::string> flags;
  for (const Word::FlagOf& f : w.flags) flags.push_back(Quoted(absl::StrCat("--", f.name)));
  return absl::StrJoin(flags, ", ");
}

}  // namespace

std::string StrategyPage() {
  std::string page =
      "# Strategy words\n\n"
      "Written by `bazel run //tools:gen_strategy_doc > docs/strategy.md` from the table of words\n"
      "(`moe/strategy/words.inc`); a test fails when this page is stale.\n\n"
      "A strategy is words separated by spaces, as in `--strategy=\"pp=2 dp=2 tp=2 ep=4 sp zero=1\"`.\n"
      "All are optional; the world is pp x dp x cp x tp. A flag, in Megatron's words where it has some,\n"
      "sets one word of the strategy that the configuration or `--strategy` gives. Switches are off with\n"
      "`no_` before the word or `no` before the flag. [Plans](plans.md) says how they are carried out.\n\n"
      "| word | legal | default | meaning | flag |\n"
      "|---|---|---|---|---|\n";
  for (const Word& w : Words()) {
    const std::string initial = w.Value(Strategy());
    absl::StrAppend(&page, "| ", Written(w), " | ", w.is_switch ? "" : w.legal, " | ",
                    w.is_switch ? (initial == "true" ? "on" : "off") : initial, " | ", w.help,
                    w.see.empty() ? "" : absl::StrCat(" ([more](", w.see, "))"), " | ", Flags(w), " |\n");
  }
  return page;
}

}  // namespace moe::strategy
