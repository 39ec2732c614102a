#include "moe/runtime/graph_segments.h"

namespace moe::runtime {

std::vector<GraphSegment> GraphSegments(absl::Span<const QueueNode> nodes, size_t least) {
  std::vector<GraphSegment> out;
  GraphSegment now = {0, 0, 0};
  const auto close = [&] {
    if (now.nodes >= least && now.nodes > 0) out.push_back(now);
    now.nodes = 0;
  };
  for (size_t i = 0; i < nodes.size(); ++i) {
    const QueueNode& n = nodes[i];
    if (!n.on_compute) continue;
    if (n.waits || !n.recordable) close();
    if (!n.recordable) continue;
    if (now.nodes == 0) now.begin = i;
    now.end = i + 1;
    ++now.nodes;
    if (n.waited_for) close();
  }
  close();
  return out;
}

}  // namespace moe::runtime
