// For tests: the timing of a slow device. A stream then begins a piece of work when the one before it has
// ended and what it waits for has happened, events keep when that was, and the host waits as long as it
// takes, though the work is done when it is given. Work of NCCL takes no time.
//
//   emulated::SetSlowness(std::chrono::microseconds(100));
#pragma once

#include <chrono>

namespace emulated {

// What each piece of work of a stream takes from now on, on all devices; 0: nothing.
void SetSlowness(std::chrono::nanoseconds each);

}  // namespace emulated
