// The page docs/strategy.md, from the table of words: what each means, what is legal, its default and its
// flags. //tools:gen_strategy_doc writes it, and a test holds the page to it.
#pragma once

#include <string>

namespace moe::strategy {

std::string StrategyPage();

}  // namespace moe::strategy
