// Offsets for buffers whose lifetimes are known, and the waits that keep asynchronous queues from touching a
// buffer too early. The mechanical half of plan-memory; knows positions and sizes, nothing of the graph.
//
//   std::vector<Lifetime> buffers = {{0, 3, 256}, {2, 5, 128}, {4, 6, 256}};
//   const Layout layout = LayOut(buffers, 64);   // offsets {0, 256, 0}, bytes 384
//
// Pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "absl/types/span.h"

namespace moe::passes {

// A buffer is live from the node that writes it first to the node that touches it last, both included.
struct Lifetime {
  int first = 0, last = 0;
  int64_t bytes = 0;
};

struct Layout {
  std::vector<int64_t> offsets;
  int64_t bytes = 0;        // of the whole
  int64_t lower_bound = 0;  // most bytes live at one position: no layout is smaller
};

// Largest first, each into the smallest gap that fits between those it overlaps in time. All offsets and
// sizes are multiples of `alignment`.
Layout LayOut(absl::Span<const Lifetime> buffers, int64_t alignment);

// Who touches what: one entry per (node, buffer), nodes by position.
struct Touch {
  int node = 0;
  bool write = false;
};
struct TouchedBuffer {
  int space = 0;               // buffers of different spaces never share bytes
  int64_t begin = 0, end = 0;  // bytes within the space
  std::vector<Touch> touches;  // in order of position
};

// Nodes run in order within a queue and in any order across. For each node (by position) the nodes of other
// queues that it must wait for: writers of what it reads, and all who touched bytes that it writes. Without
// those that follow from earlier waits of its own queue.
std::map<int, std::vector<int>> WaitsBetweenQueues(absl::Span<const int> queue_of_node,
                                                   absl::Span<const TouchedBuffer> buffers);

}  // namespace moe::passes
