// Traces, as the timeline reads them.
#include "moe/inspect/timeline.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto timeline = moe::inspect::MeasuredTimeline(
      absl::string_view(reinterpret_cast<const char*>(data), size), moe::Mesh({{"pp", 2}, {"dp", 2}}));
  if (timeline.ok()) {
    (void)moe::inspect::TimelineText(*timeline);
    (void)moe::inspect::TimelineSvg(*timeline);
  }
  return 0;
}
