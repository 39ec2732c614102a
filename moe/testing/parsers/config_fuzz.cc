// Configurations: what parses is resolved, validated, printed and read again.
#include <glog/logging.h>

#include "moe/base/textproto.h"
#include "moe/train/config/config.h"
#include "moe/train/config/validate.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using moe::train::RunConfig;
  RunConfig config = moe::train::DefaultRunConfig();
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  if (!moe::MergeTextproto(text, "config", config).ok()) return 0;
  config = moe::train::ResolveRunConfig(std::move(config));
  (void)moe::train::ValidateRunConfig(config);
  RunConfig same;
  CHECK(moe::MergeTextproto(moe::PrintTextproto(config), "printed", same).ok());
  return 0;
}
