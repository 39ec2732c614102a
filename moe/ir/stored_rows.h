// Stored rows: states whose first dim is kept in other rows than the logical tensor has.
//
// Tensors of experts may be stored by expert slots, of which each holds an expert, a replica of one, or
// nothing; those of a vocabulary may end in rows of padding. Everything outside the graph (initial values,
// checkpoints, comparisons) speaks of logical tensors, and this is the way between the two:
//
//   if (const std::optional<StoredRows> rows = StoredRowsOf(module, state)) {
//     ASSIGN_OR_RETURN(std::vector<double> logical, rows->ToLogical(stored, /*add=*/false));
//   }
//
// The attributes of a state say how its rows are stored: expert_map = the name of the table (a state of kind
// "expert_map", slot -> expert, -1 where it is empty, whose initial contents are its attribute `slots`), or
// logical_rows = the number of rows that are not padding. Values are row-major doubles, as in Session. Pure
// functions, no ownership.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "moe/ir/graph.h"

namespace moe {

struct StoredRows {
  int64_t logical = 0;       // rows of the logical tensor
  std::vector<int64_t> row;  // of each stored row: the logical one; -1: none, it holds zeros

  bool IsIdentity() const;
  bool HasReplicas() const;
  // The logical index of a stored element, -1 in rows that hold none.
  int64_t LogicalIndex(int64_t stored, int64_t row_elements) const {
    const int64_t r = row[stored / row_elements];
    return r < 0 ? -1 : r * row_elements + stored % row_elements;
  }
  // Replicas add up (gradients), or must be the same bit by bit (Internal error naming two rows otherwise).
  absl::StatusOr<std::vector<double>> ToLogical(absl::Span<const double> stored, bool add) const;
  // Every replica gets the value; with `once` the first alone, the others zero.
  std::vector<double> ToStored(absl::Span<const double> logical, bool once) const;
};

// What is wrong with the attributes below, of a state or of an expert map; empty if nothing is. The verifier
// asks.
std::string StoredRowsProblem(const Module& module, const State& state);

// By the attributes of the state and, for the expert map, those of its table. Nullopt: stored as it is.
std::optional<StoredRows> StoredRowsOf(const Module& module, const State& state);
// The type of the logical tensor; replicated if it differs from the stored one.
Type LogicalType(const Module& module, const State& state);

// What is wrong with a table slot -> expert: an entry that is neither an expert nor -1, an expert without a
// slot. Empty if nothing is.
std::string ExpertMapProblem(absl::Span<const int64_t> map, int64_t experts);

}  // namespace moe
