// Graph segments: the parts of a function whose work is the same in every run, so that a device can record it
// once and launch it as one. A part is a run of nodes of the compute queue, with nothing inside for which
// another queue waits, and nothing that waits for another queue but at its start.
//
//   std::vector<GraphSegment> segments = GraphSegments(nodes, /*least=*/2);
//
// Plain data; the runtime decides when to record.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/types/span.h"

namespace moe::runtime {

// A node in list order, both queues.
struct QueueNode {
  bool on_compute = true;   // false: of another queue
  bool recordable = true;   // its work goes to the compute stream alone, without a look at the host
  bool waits = false;       // for another queue, for something not waited for before
  bool waited_for = false;  // by another queue
};

struct GraphSegment {
  size_t begin,
      end;       // nodes [begin, end); both ends are recordable compute nodes; others in between stay out
  size_t nodes;  // of the compute queue
  friend bool operator==(const GraphSegment&, const GraphSegment&) = default;
};

// Maximal segments, in order; those of fewer than `least` compute nodes are left out.
std::vector<GraphSegment> GraphSegments(absl::Span<const QueueNode> nodes, size_t least);

}  // namespace moe::runtime
