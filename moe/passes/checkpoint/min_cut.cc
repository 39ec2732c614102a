#include "moe/passes/checkpoint/min_cut.h"

#include <algorithm>
#include <cmath>

namespace moe::passes {

void MinCut::AddEdge(int from, int to, double capacity) {
  edges_of_[from].push_back(static_cast<int>(edges_.size()));
  edges_.push_back({to, capacity});
  edges_of_[to].push_back(static_cast<int>(edges_.size()));
  edges_.push_back({from, 0});
}

bool MinCut::FindLevels(int source, int sink) {
  level_.assign(edges_of_.size(), -1);
  level_[source] = 0;
  std::vector<int> queue = {source};
  for (size_t i = 0; i < queue.size(); ++i) {
    for (const int e : edges_of_[queue[i]]) {
      if (!Open(e) || level_[edges_[e].to] >= 0) continue;
      level_[edges_[e].to] = level_[queue[i]] + 1;
      queue.push_back(edges_[e].to);
    }
  }
  return level_[sink] >= 0;
}

// One path of rising levels, without recursion: graphs may be thousands of nodes deep.
double MinCut::Push(int source, int sink) {
  std::vector<int> path;  // edges
  int at = source;
  while (at != sink) {
    int& next = next_[at];
    const std::vector<int>& edges = edges_of_[at];
    while (next < static_cast<int>(edges.size()) &&
           (!Open(edges[next]) || level_[edges_[edges[next]].to] != level_[at] + 1)) {
      ++next;
    }
    if (next < static_cast<int>(edges.size())) {
      path.push_back(edges[next]);
      at = edges_[edges[next]].to;
    } else if (path.empty()) {
      return 0;
    } else {  // a dead end: back one step, and past the edge that led here
      at = edges_[path.back() ^ 1].to;
      path.pop_back();
      ++next_[at];
    }
  }
  double flow = kInfinite;
  for (const int e : path) flow = std::min(flow, edges_[e].left);
  if (std::isinf(flow)) return flow;
  for (const int e : path) {
    edges_[e].left -= flow;
    edges_[e ^ 1].left += flow;
  }
  return flow;
}

double MinCut::Solve(int source, int sink) {
  double cut = 0;
  while (FindLevels(source, sink)) {
    next_.assign(edges_of_.size(), 0);
    while (const double flow = Push(source, sink)) {
      cut += flow;
      if (std::isinf(flow)) return cut;
    }
  }
  // What still reaches the sink.
  on_sink_side_.assign(edges_of_.size(), false);
  on_sink_side_[sink] = true;
  std::vector<int> stack = {sink};
  while (!stack.empty()) {
    const int n = stack.back();
    stack.pop_back();
    for (const int e : edges_of_[n]) {
      const int from = edges_[e].to;
      if (on_sink_side_[from] || !Open(e ^ 1)) continue;
      on_sink_side_[from] = true;
      stack.push_back(from);
    }
  }
  return cut;
}

}  // namespace moe::passes
