// Writes docs/composition.md to standard output:
// bazel run //moe/testing:composition_page > docs/composition.md
#include <cstdio>
#include <string>

#include "moe/testing/composition.h"

int main() {
  const std::string page = moe::testing::CompositionPage();
  return std::fwrite(page.data(), 1, page.size(), stdout) == page.size() ? 0 : 1;
}
