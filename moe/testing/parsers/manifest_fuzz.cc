// Manifests of checkpoints, with the checksum that they say and as if it were right.
#include <glog/logging.h>

#include "moe/train/checkpoint/checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using moe::train::ParseManifest;
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const bool whole = ParseManifest(text).ok();
  const auto meta = ParseManifest(text, /*checksum_is_right=*/true);
  CHECK(!whole || meta.ok()) << meta.status();
  if (meta.ok()) CHECK(meta->step >= 0 && meta->skipped_steps <= meta->step && meta->consumed_samples >= 0);
  return 0;
}
