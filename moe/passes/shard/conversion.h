// The conversion planner: how a value gets from one placement to another, and what that costs.
//
//   ConversionPlanner planner(mesh);
//   const Conversion& c = planner.Plan(from, to);
//   if (!c.legal) ...                      // shard -> partial, or max <-> sum
//   double bytes = c.Cost(planner.GlobalBytes(type));
//   for (const ConversionPhase& p : c.phases) ...   // each ends in a placement, hence in a value of its own
//
// A conversion is planned jointly over all axes. On the view with one sub-dim per axis that leaves or comes,
// the kinds of steps follow in the order zero, slice, reduce_scatter, all_reduce, all_to_all, all_gather:
// what shrinks the value goes first. The steps are cut into phases where the intermediate is a placement
// (every dim keeps a prefix of its axes). A dim that both loses and gains axes goes through a middle
// placement; one that only changes the order of its axes is permuted where that is cheaper. replicated ->
// partial is "zero all but one", which is exact.
//
// Cost: bytes that one rank sends in a ring, of the larger side, plus a constant per collective. On a mesh of
// several nodes, what goes by a slower link counts as the bytes that a link inside a node takes in that time,
// in two levels where these are faster. It is linear in the size of the value and otherwise depends on the
// placements alone, so plans are cached per mesh and pair of placements. Placements are interned: ids of one
// planner are small integers that compare by value. Not thread-safe; references stay valid for the planner's
// life, which must lie within the mesh's.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "moe/cost/target.h"
#include "moe/ir/conversion_steps.h"
#include "moe/ir/types.h"

namespace moe::passes {

struct ConversionPhase {
  Placement from, to;
  std::vector<ConversionStep> steps;
};

struct Conversion {
  bool legal = true;
  double per_byte = 0;  // cost per byte of the global value
  double constant = 0;  // launches
  std::vector<ConversionPhase> phases;

  double Cost(double global_bytes) const {
    return legal ? per_byte * global_bytes + constant : std::numeric_limits<double>::infinity();
  }
};

using PlacementId = int32_t;

class ConversionPlanner {
 public:
  // `target`: how fast its links are. two_levels: whether collectives that leave nodes may go in two levels.
  explicit ConversionPlanner(const Mesh& mesh, const cost::Target& target = cost::Target(),
                             bool two_levels = true);
  ConversionPlanner(const ConversionPlanner&) = delete;

  const Mesh& mesh() const { return mesh_; }

  PlacementId Intern(const Placement& placement);
  const Placement& Get(PlacementId id) const { return placements_[id]; }
  // By how much a value in this placement is smaller on one rank than the global one.
  double Shards(PlacementId id) const { return shards_[id]; }

  const Conversion& Plan(PlacementId from, PlacementId to);
  const Conversion& Plan(const Placement& from, const Placement& to) {
    return Plan(Intern(from), Intern(to));
  }
  double Cost(PlacementId from, PlacementId to, double global_bytes) {
    return from == to ? 0 : Plan(from, to).Cost(global_bytes);
  }

  // Cost of one collective, without the constant, on a value of `bytes` on one rank.
  double StepCostInBytes(const ConversionStep& step, double bytes) const;

  // Bytes of the whole value; ragged values count by their expected extent.
  static double GlobalBytes(const Type& type) {
    return static_cast<double>(type.num_elements()) * static_cast<double>(ByteSize(type.dtype));
  }

 private:
  Conversion Compute(const Placement& from, const Placement& to);
  Conversion ThroughMiddle(const Placement& from, const Placement& to);
  Conversion Direct(const Placement& from, const Placement& to) const;
  Conversion Permute(const Placement& from, const Placement& to) const;
  double ShardsOf(const Placement& placement) const;

  const Mesh& mesh_;
  cost::Target in_bytes_;  // links without latency, one byte per second inside a node
  const bool two_levels_;
  absl::flat_hash_map<Placement, PlacementId> ids_;
  std::deque<Placement> placements_;
  std::vector<double> shards_;
  absl::flat_hash_map<std::pair<PlacementId, PlacementId>, std::unique_ptr<Conversion>> plans_;
};

// What a conversion moves, for people: "batch@dp -> experts@ep". `dim_names` has one name per dim ("" for
// none).
std::string DescribeConversion(const Placement& from, const Placement& to, const Mesh& mesh,
                               const std::vector<std::string>& dim_names);

}  // namespace moe::passes
