// Prints the table of bubble shares in docs/plans.md.
#include <cstdio>

#include "moe/passes/schedule/bubble.h"

int main() { std::fputs(moe::passes::BubbleTableMarkdown().c_str(), stdout); }
