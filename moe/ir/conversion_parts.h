// Parts of a conversion node: which value becomes which, by which steps. A comm.all_gather and its like have
// one part; comm.bucket and comm.start have one per operand, whose steps stand in the attribute `parts`.
//
//   %a, %b = comm.bucket(%x, %y) {axes = [dp], parts = ["all_reduce dp:sum>-", "all_reduce dp:sum>-"]}
//
//   ASSIGN_OR_RETURN(std::vector<ConversionPart> parts, ConversionParts(*node, mesh));
//
// Plain functions.
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

// True for the nodes that ConversionParts reads: conversions whose steps are known.
bool HasConversionParts(const Node& n);
// Error (InvalidArgument): steps that do not parse, or not as many parts as operands.
absl::StatusOr<std::vector<ConversionPart>> ConversionParts(const Node& n, const Mesh& mesh);

// The type without its `future`.
Type ArrivedType(Type type);
// What a future that is waited for in its function becomes: the result of its comm.done. Other values:
// themselves.
Value ArrivedValue(Value v);
// True for a comm.start whose futures are waited for in a later function.
bool CrossesFunctions(const Node& n);

}  // namespace moe
