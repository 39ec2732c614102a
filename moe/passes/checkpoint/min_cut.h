// Minimum s-t cut of a directed graph with real capacities (Dinic's algorithm: E. A. Dinic, "Algorithm for
// solution of a problem of maximum flow in networks with power estimation", 1970).
//
//   MinCut graph(4);
//   graph.AddEdge(0, 2, 1.5);
//   graph.AddEdge(2, 1, MinCut::kInfinite);
//   const double cost = graph.Solve(/*source=*/0, /*sink=*/1);   // of the edges cut
//   if (graph.OnSinkSide(2)) ...   // in the one of all minimum cuts that has the smallest sink side
//
// O(V^2 E) at worst, close to linear on the shallow graphs that it is used for. Solve once. Not thread-safe.
#pragma once

#include <limits>
#include <vector>

namespace moe::passes {

class MinCut {
 public:
  static constexpr double kInfinite = std::numeric_limits<double>::infinity();

  explicit MinCut(int nodes) : edges_of_(nodes) {}

  int AddNode() {
    edges_of_.emplace_back();
    return static_cast<int>(edges_of_.size()) - 1;
  }
  void AddEdge(int from, int to, double capacity);

  // The capacity cut; infinite if every cut has an edge of infinite capacity.
  double Solve(int source, int sink);
  bool OnSinkSide(int node) const { return on_sink_side_[node]; }

 private:
  struct Edge {
    int to;
    double left;  // capacity that is not used
  };

  bool FindLevels(int source, int sink);
  double Push(int source, int sink);
  // Exact: what limits a path is used up to zero, so that every path closes an edge.
  bool Open(int edge) const { return edges_[edge].left > 0; }

  std::vector<Edge> edges_;  // 2 i and 2 i + 1 are one edge and its reverse
  std::vector<std::vector<int>> edges_of_;
  std::vector<int> level_, next_;
  std::vector<bool> on_sink_side_;
};

}  // namespace moe::passes
