// IR text: what parses is printed, and what is printed parses to the same text.
#include <glog/logging.h>

#include "moe/ir/text.h"
#include "moe/ir/verifier.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto module = moe::ParseModule(absl::string_view(reinterpret_cast<const char*>(data), size));
  if (!module.ok()) return 0;
  (void)moe::Verify(**module, {.unplaced_nodes = true});
  const std::string text = moe::PrintModule(**module);
  const auto again = moe::ParseModule(text);
  CHECK(again.ok()) << again.status() << "\n" << text;
  CHECK_EQ(moe::PrintModule(**again), text);
  return 0;
}
