// Strategy words: what parses is printed, and what is printed parses to the same words.
#include <glog/logging.h>

#include "moe/strategy/strategy.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using moe::strategy::ParseStrategy;
  const auto strategy = ParseStrategy(absl::string_view(reinterpret_cast<const char*>(data), size));
  if (!strategy.ok()) return 0;
  const std::string text = strategy->ToString();
  const auto again = ParseStrategy(text);
  CHECK(again.ok()) << again.status() << "\n" << text;
  CHECK_EQ(again->ToString(), text);
  return 0;
}
