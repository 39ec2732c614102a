// Builder: creates nodes with inferred types at an insertion point.
//
//   Builder b = Builder::Before(node);            // inherits phase, scope and provenance
//   ASSIGN_OR_RETURN(Value sum, b.Create("math.add", {x, y}));
//   ASSIGN_OR_RETURN(Node* n, b.CreateNode("moe.top_k", {p, mask}, {{"k", int64_t{2}}}));
//
// In a graph that is already placed, collectives get their result type from the operand's, too:
//
//   ASSIGN_OR_RETURN(Value part, b.Create("comm.reduce_scatter", {sum}, {{"axes", tp}, {"dim", int64_t{0}}}));
//
// Other nodes get the result types from their caller there (CreateTyped), who also sets their `assignment`.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "moe/ir/graph.h"
#include "moe/ir/registry.h"

namespace moe {

class Builder {
 public:
  explicit Builder(Function* f, const OpRegistry& registry = Ops());  // appends at the end
  static Builder Before(Node* n);
  static Builder After(Node* n);

  Function* function() const { return function_; }
  Node* insertion_point() const { return before_; }

  // Errors: unknown op, wrong arity, missing or mistyped attribute, extents that do not match.
  absl::StatusOr<Node*> CreateNode(absl::string_view op, std::vector<Value> operands,
                                   Attributes attributes = {}, absl::string_view name_hint = "");
  // For ops with one result.
  absl::StatusOr<Value> Create(absl::string_view op, std::vector<Value> operands, Attributes attributes = {},
                               absl::string_view name_hint = "");
  // Result types given by the caller instead of inferred.
  absl::StatusOr<Node*> CreateTyped(absl::string_view op, std::vector<Value> operands, Attributes attributes,
                                    std::vector<Type> types, absl::string_view name_hint = "");

  Phase phase = Phase::kForward;
  std::string scope;
  Provenance provenance;

 private:
  Function* function_;
  const OpRegistry* registry_;
  Node* before_ = nullptr;
};

// InferTypes, with placements where the op is a conversion whose operand and attributes tell what it gives
// (TypeAfter of conversion_steps.h); other results are replicated.
absl::StatusOr<std::vector<Type>> InferPlacedTypes(const Node& n);

}  // namespace moe
