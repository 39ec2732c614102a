// Prints the table of features that are tested together, for docs/plans.md.
#include <iostream>

#include "moe/testing/composition.h"

int main() {
  std::cout << moe::testing::CompositionTable();
  return 0;
}
