// Runs the blocks of a grid, in order, on the calling thread. The CUDA threads of a block are fibers, but
// only those that wait for others keep one: a fiber that has finished one thread goes on with the next, so a
// kernel without barriers is a loop. Threads run in ascending order between barriers.
//
// Found out and reported, with kernel, block and source line: a __syncthreads that some threads of the block
// do not reach, or reach elsewhere; a warp primitive whose lanes do not all come; a stack overrun.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>

#include "vector_types.h"

namespace emulated {

struct Grid {
  const char* kernel = "";  // name, for messages
  dim3 blocks, threads;
  size_t shared_bytes = 0;  // dynamic
  void (*thread)(const void* arguments) = nullptr;
  const void* arguments = nullptr;
};

// Empty if all went well; otherwise what was wrong. Safe from several operating system threads at once.
std::string RunGrid(const Grid& grid);

// What a CUDA thread calls. All are valid in RunGrid only.
void* DynamicShared();  // aligned to 128, poisoned at the start of each block

void SyncThreads(std::source_location where);
// As __syncthreads_count and its like: the number of threads whose `predicate` holds.
int SyncThreadsCount(bool predicate, std::source_location where);

// One lane's part in a warp primitive. When all live lanes of `mask` have come, `complete` is called once
// with the requests of all lanes of the warp, null where a lane takes no part; it fills the results.
struct WarpRequest {
  uint32_t mask = 0;
  uint64_t value = 0;
  int argument = 0;
  uint64_t result = 0;
  void (*complete)(WarpRequest* const* lanes, uint32_t arrived) = nullptr;
  std::source_location where;
};
void WarpExchange(WarpRequest& request);
uint32_t LiveLanes();  // of the calling thread's warp
int Lane();
[[noreturn]] void Trap(std::source_location where);

}  // namespace emulated

extern constinit thread_local uint3 threadIdx;
extern constinit thread_local uint3 blockIdx;
extern constinit thread_local dim3 blockDim;
extern constinit thread_local dim3 gridDim;
