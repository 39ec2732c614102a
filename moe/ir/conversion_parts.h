// Parts of a conversion node: which value becomes which, by which steps. A comm.all_gather and its like have
// one part, comm.bucket and comm.start one per operand. Where the types of operand and result tell the step
// (StepBetween), the node does not repeat it; others say their steps in the attribute `steps`, those of
// several parts in `parts`.
//
//   %r = comm.all_reduce(%x) {axes = [dp]} : f32[8]                              // %x: f32[8] partial(dp)
//   %g = comm.all_gather(%y) {axes = [b, a], steps = "all_gather b:0>-; all_gather a:0>-"} : f32[8]
//
//   ASSIGN_OR_RETURN(std::vector<ConversionPart> parts, ConversionParts(*node, mesh));
//
// This is the one place that reads steps. Plain functions.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "moe/ir/conversion_steps.h"
#include "moe/ir/graph.h"

namespace moe {

// In one bucket at most: each dim of each operand is a factor of the node's rule.
inline constexpr int kMaxBucketDims = 96;

struct ConversionPart {
  Value from;
  Type to;  // of the value, also where the node gives a future of it
  std::vector<ConversionStep> steps;
};

// Whether ConversionParts reads the node: a conversion that is lowered to steps (any but comm.convert).
bool HasConversionParts(const Node& n);
// True for those among them that convert one value: neither a bucket nor the start of an exchange.
bool ConvertsOne(const Node& n);
// Errors (InvalidArgument): steps that do not parse, or that neither the node nor its types tell; a step of
// another kind than the op; not as many parts as operands; a part that moves other axes than the node.
absl::StatusOr<std::vector<ConversionPart>> ConversionParts(const Node& n, const Mesh& mesh);

// The attributes of a node that converts one value by `steps`: axes, and the steps where types do not tell
// them.
Attributes ConversionAttributes(const Placement& from, const Placement& to,
                                const std::vector<ConversionStep>& steps, const Mesh& mesh);
// The attributes of a comm.start that begins what `n` does.
Attributes StartAttributes(const Node& n);

// The type without its `future`.
Type ArrivedType(Type type);
// What a future that is waited for in its function becomes: the result of its comm.done. Other values:
// themselves.
Value ArrivedValue(Value v);
// True for a comm.start whose futures are waited for in a later function.
bool CrossesFunctions(const Node& n);

}  // namespace moe
