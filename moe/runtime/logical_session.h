// LogicalSession: a session over a module whose states may be stored by other rows than the model's (expert
// slots, a padded vocabulary: ir/stored_rows.h). It gives and takes logical tensors; a subclass reads and
// writes stored ones. Writing a parameter writes its working copies.
//
//   class Executor : public LogicalSession {
//     const Module& module() const override { return *program_.module; }
//     absl::StatusOr<std::vector<double>> ReadStored(const State& state) override;
//     absl::Status WriteStored(const State& state, absl::Span<const double> values) override;
//   };
//
// The table expert slot -> expert is state: it is read from the session, so experts may move between steps.
// Writing it (WriteState of the state "<layer>.expert_map") moves the parameters and moments of the layer
// along; gradients of the step before are then of no use. Errors: InvalidArgument for a table that leaves an
// expert out, FailedPrecondition for one with replicas where the module does not add up their gradients.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "moe/ir/graph.h"
#include "moe/ir/stored_rows.h"
#include "moe/runtime/session.h"

namespace moe::runtime {

class LogicalSession : public Session {
 public:
  std::vector<std::string> StateNames() const override;
  absl::StatusOr<Type> StateType(const std::string& name) const override;
  absl::StatusOr<std::vector<double>> ReadState(const std::string& name) override;
  absl::Status WriteState(const std::string& name, absl::Span<const double> values) override;

 protected:
  virtual const Module& module() const = 0;
  // Whole tensors as stored, row-major. Written values have as many elements as the state.
  virtual absl::StatusOr<std::vector<double>> ReadStored(const State& state) = 0;
  virtual absl::Status WriteStored(const State& state, absl::Span<const double> values) = 0;

 private:
  absl::StatusOr<const State*> Find(const std::string& name) const;
  // With the experts that the session's table has now.
  absl::StatusOr<std::optional<StoredRows>> RowsNow(const State& state);
  absl::Status MoveExperts(const State& table, absl::Span<const double> to);
};

}  // namespace moe::runtime
