// The one clock of traces, flight records and the host's timed events: monotonic, the same for all threads
// and processes of a machine.
#pragma once

#include <chrono>
#include <cstdint>

namespace moe {

inline int64_t NowNanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace moe
