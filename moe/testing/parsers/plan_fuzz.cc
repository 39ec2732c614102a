// Plans: the bytes of a file, and the message in it, whose checksum would otherwise keep changed bytes out.
#include "moe/plan/plan.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  (void)moe::plan::ParsePlan(bytes);
  moe::plan::PlanProto proto;
  if (moe::ParseProto(bytes, moe::plan::kPlanLimits, proto).ok()) (void)moe::plan::PlanFromProto(proto);
  return 0;
}
