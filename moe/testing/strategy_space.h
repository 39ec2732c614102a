// StrategySpace: what can be combined. A table of dimensions, each with the values it can take; a point of
// the space is a model, a strategy and a batch, ready for the equivalence harness.
//
//   const StrategySpace& space = MatrixSpace();
//   for (const Point& p : space.CoverPairs(/*seed=*/1, &impossible)) CheckEquivalence(space.Case(p));
//
// A value is words of a strategy, fields of a model, or both; the first value of a dimension is the plain
// one. The words of a strategy say themselves what to try of them (moe/strategy/words.inc); to add a feature
// of the model, add a line to a table in strategy_space.cc: the covering array, the fuzzer and the table of
// what composes follow.
//
// What points are legal is asked of the checks that a user's configuration goes through. Everything is
// deterministic: the same seed draws the same points everywhere. Immutable after construction.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "moe/testing/equivalence.h"

namespace moe::testing {

struct DimensionValue {
  std::string label;     // as a table shows it; "" for the plain value
  std::string strategy;  // words
  std::string model;     // fields, laid over those of the space; zero and false lay nothing over
  std::string batch;     // "empty sample", "one expert": workloads that starve somebody
  std::string wants;     // a dimension without which it does nothing: sp needs tp, a schedule needs pp
};
struct Dimension {
  std::string name;
  std::vector<DimensionValue> values;
};

using Point = std::vector<int>;  // the value of each dimension

// xorshift64*: small, and the same numbers on every machine.
class Draw {
 public:
  explicit Draw(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15 + 0x2545f4914f6cdd1d) {}
  uint64_t Next();
  int Below(int n) { return static_cast<int>(Next() >> 33) % n; }

 private:
  uint64_t state_;
};

struct ImpossiblePair {
  int dimension[2], value[2];
  std::string reason;  // what the checks say most often of points with the pair
};

class StrategySpace {
 public:
  // `model` are the fields common to all points; no point has more than `most_ranks` ranks.
  StrategySpace(const std::string& model, std::vector<Dimension> dimensions, int64_t most_ranks);

  const std::vector<Dimension>& dimensions() const { return dimensions_; }
  Point Plain() const { return Point(dimensions_.size(), 0); }

  // The case of a point: 2 samples per data rank and microbatch, or 1 where that is a lot.
  EquivalenceCase Case(const Point& p) const;
  // "tp=2 dp=4 sp | num_experts: 7 | empty sample": what differs from the plain point.
  std::string Describe(const Point& p) const;
  // What the checks of a configuration say, one problem a line; "" for a legal point.
  std::string Problems(const Point& p) const;

  Point Random(Draw* draw) const;
  // A legal point, or Plain() after many tries.
  Point RandomLegal(Draw* draw) const;

  // Points in which every pair of values of two dimensions stands together at least once, but for those that
  // no legal point of many tried has; the latter go to `impossible`.
  std::vector<Point> CoverPairs(uint64_t seed, std::vector<ImpossiblePair>* impossible = nullptr) const;

  // The point without what computes or travels narrower than the model, so that f64 tells a bug from
  // rounding.
  Point Exact(Point p) const;

  // The simplest point reached from `p` by steps towards plain values such that `fails` stays true.
  Point Shrink(Point p, const std::function<bool(const Point&)>& fails) const;

 private:
  // Random values for the dimensions that values of the point need and do not have.
  void Complete(Point* p, Draw* draw) const;
  int Find(const std::string& dimension) const;
  model::ModelConfig ModelOf(const Point& p) const;
  std::string WordsOf(const Point& p) const;

  model::ModelConfig model_;
  std::vector<std::vector<model::ModelConfig>> fields_;  // of each value, parsed
  const std::vector<Dimension> dimensions_;
  const int64_t most_ranks_;
};

// Tiny models, every feature: what the covering array is made of.
const StrategySpace& MatrixSpace();
// Its covering array by kMatrixSeed, filled up to kMatrixRows with random legal points; computed once.
constexpr uint64_t kMatrixSeed = 1;
constexpr int kMatrixRows = 80;
const std::vector<Point>& MatrixPoints();
const std::vector<ImpossiblePair>& MatrixImpossible();

// The same features with sizes of the model as dimensions of their own: what the fuzzer draws from.
const StrategySpace& FuzzSpace();

}  // namespace moe::testing
