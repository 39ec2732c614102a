// Writes docs/strategy.md to standard output:  bazel run //tools:gen_strategy_doc > docs/strategy.md
#include <iostream>

#include "moe/strategy/page.h"
#include "tools/tool.h"

int main() {
  moe::tools::BeginTool();
  std::cout << moe::strategy::StrategyPage();
  return moe::tools::EndTool(absl::OkStatus());
}
