// Flight records: what another process said, diagnosed and written again.
#include <glog/logging.h>

#include "moe/runtime/flight.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto record = moe::runtime::ParseFlight(absl::string_view(reinterpret_cast<const char*>(data), size));
  if (!record.ok()) return 0;
  (void)moe::runtime::Diagnose({*record});
  const auto again = moe::runtime::ParseFlight(moe::runtime::FlightJson(*record));
  CHECK(again.ok()) << again.status();
  return 0;
}
