// Writes docs/strategy.md to standard output:  bazel run //tools:gen_strategy_doc > docs/strategy.md
#include <cstdio>
#include <string>

#include "moe/strategy/page.h"

int main() {
  const std::string page = moe::strategy::StrategyPage();
  return std::fwrite(page.data(), 1, page.size(), stdout) == page.size() ? 0 : 1;
}
