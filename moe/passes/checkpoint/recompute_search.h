// What to save and what to compute again, as an optimisation problem without any graph IR in it.
//
// Nodes compute values from values, each once in the forward. The backward needs some of the values. A needed
// value is saved, which takes its bytes, or its node is computed again, which takes the node's cost and needs
// the values that the node reads in turn. LeastRecomputation finds a choice of least cost whose saved values
// fit a budget.
//
//   RecomputeProblem p;
//   const int n = p.AddNode(/*cost=*/2e-5, /*may=*/true, /*reads=*/{});
//   const int v = p.AddValue(n, /*bytes=*/4096, /*needed=*/true);
//   const RecomputeChoice c = LeastRecomputation(p, /*budget=*/0);   // c.fits, c.recompute[n], c.cost, ...
//
// The algorithm. At a fixed price per byte, the cheapest choice is a minimum cut, exactly: a node is on the
// sink side if it is computed again (an edge from the source has its cost), the "out" of a value if the
// backward needs it (an edge from its "in", which follows its node, has price x bytes; an edge to the sink is
// infinite), and infinite edges from what a node reads to the node make its needs its own. Choices at rising
// prices are the corners of the lower convex hull of (bytes, cost). Starting from "save all" and "fewest
// bytes", the price at which the two best known corners on both sides of the budget cost the same either
// yields a corner between them or proves that they are neighbours. Equal layers would all change at the same
// price, so earlier values are a trifle dearer, and layers change one by one. What the corner within the
// budget leaves unused is filled by local search: nodes that need not be computed again after all, dearest
// first, and pairs of one more for cheaper ones. The corners also give a bound: no choice within the budget
// costs less than `at_least`.
//
// Pure functions; deterministic.
#pragma once

#include <cstdint>
#include <vector>

namespace moe::passes {

struct RecomputeProblem {
  struct Node {
    double cost = 0;         // of computing it again, above zero
    bool may = true;         // be computed again
    std::vector<int> reads;  // values
    std::vector<int> makes;  // values
  };
  struct Value {
    int node = -1;
    int64_t bytes = 0;
    bool needed = false;  // by the backward
  };
  std::vector<Node> nodes;  // operands before users
  std::vector<Value> values;

  int AddNode(double cost, bool may, std::vector<int> reads) {
    nodes.push_back({cost, may, std::move(reads), {}});
    return static_cast<int>(nodes.size()) - 1;
  }
  int AddValue(int node, int64_t bytes, bool needed) {
    values.push_back({node, bytes, needed});
    nodes[node].makes.push_back(static_cast<int>(values.size()) - 1);
    return static_cast<int>(values.size()) - 1;
  }
};

struct RecomputeChoice {
  std::vector<bool> recompute;  // by node
  int64_t bytes = 0;            // of what is saved
  double cost = 0;
  bool fits = true;     // false: nothing does; this is the choice of fewest bytes
  double at_least = 0;  // no choice within the budget costs less
};

// The choice in which these nodes are computed again; those that nothing needs are left out.
RecomputeChoice Evaluate(const RecomputeProblem& problem, std::vector<bool> recompute);

RecomputeChoice LeastRecomputation(const RecomputeProblem& problem, int64_t budget);

}  // namespace moe::passes
