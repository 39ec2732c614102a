#include "moe/runtime/logical_session.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/ir/state_layout.h"

namespace moe::runtime {

absl::StatusOr<const State*> LogicalSession::Find(const std::string& name) const {
  const State* s = module().FindState(name);
  if (s == nullptr) return absl::NotFoundError(absl::StrCat("no state named '", name, "'"));
  return s;
}

std::vector<std::string> LogicalSession::StateNames() const {
  std::vector<std::string> names;
  for (const auto& s : module().states()) names.push_back(s->name);
  return names;
}

absl::StatusOr<Type> LogicalSession::StateType(const std::string& name) const {
  ASSIGN_OR_RETURN(const State* s, Find(name));
  return LogicalType(module(), *s);
}

absl::StatusOr<std::optional<StoredRows>> LogicalSession::RowsNow(const State& state) {
  std::optional<StoredRows> rows = StoredRowsOf(module(), state);
  const std::string table = AttrString(state.attributes, "expert_map");
  if (rows && !table.empty()) {
    ASSIGN_OR_RETURN(const State* s, Find(table));
    ASSIGN_OR_RETURN(const std::vector<double> now, ReadStored(*s));
    rows->row.assign(now.begin(), now.end());
  }
  return rows;
}

absl::StatusOr<std::vector<double>> LogicalSession::ReadState(const std::string& name) {
  ASSIGN_OR_RETURN(const State* s, Find(name));
  ASSIGN_OR_RETURN(const std::optional<StoredRows> rows, RowsNow(*s));
  ASSIGN_OR_RETURN(std::vector<double> stored, ReadStored(*s));
  if (!rows) return stored;
  // Each replica's gradient is a summand.
  absl::StatusOr<std::vector<double>> logical =
      rows->ToLogical(stored, /*add=*/AttrString(s->attributes, "kind") == "gradient");
  if (!logical.ok()) return Annotate(logical.status(), absl::StrCat("state ", name));
  return logical;
}

absl::Status LogicalSession::WriteState(const std::string& name, absl::Span<const double> values) {
  ASSIGN_OR_RETURN(const State* s, Find(name));
  const int64_t elements = LogicalType(module(), *s).num_elements();
  if (static_cast<int64_t>(values.size()) != elements) {
    return absl::InvalidArgumentError(
        absl::StrCat("state '", name, "' has ", elements, " elements, not ", values.size()));
  }
  if (AttrString(s->attributes, "kind") == "expert_map") return MoveExperts(*s, values);
  ASSIGN_OR_RETURN(const std::optional<StoredRows> rows, RowsNow(*s));
  const std::vector<double> stored =
      rows ? rows->ToStored(values, /*once=*/AttrString(s->attributes, "kind") == "gradient")
           : std::vector<double>(values.begin(), values.end());
  RETURN_IF_ERROR(WriteStored(*s, stored));
  for (const auto& copy : module().states()) {
    if (AttrString(copy->attributes, "kind") != "working_copy" || AttrString(copy->attributes, "of") != name)
      continue;
    RETURN_IF_ERROR(WriteStored(*copy, stored));
  }
  return absl::OkStatus();
}

absl::Status LogicalSession::MoveExperts(const State& table, absl::Span<const double> to) {
  StoredRows rows;
  rows.logical = AttrInt(table.attributes, "experts");
  rows.row.assign(to.begin(), to.end());
  if (const std::string problem = ExpertMapProblem(rows.row, rows.logical); !problem.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("state '", table.name, "': ", problem));
  }
  if (rows.HasReplicas() && !AttrBool(table.attributes, "replicas")) {
    return absl::FailedPreconditionError(
        absl::StrCat("state '", table.name,
                     "': this plan was compiled for a map without replicas and does not "
                     "add up their gradients"));
  }
  std::vector<std::pair<const State*, std::vector<double>>> moved;
  for (const auto& s : module().states()) {
    if (AttrString(s->attributes, "expert_map") != table.name || !IsPersistent(*s)) continue;
    ASSIGN_OR_RETURN(std::vector<double> values, ReadState(s->name));
    moved.emplace_back(s.get(), rows.ToStored(values, /*once=*/false));
  }
  RETURN_IF_ERROR(WriteStored(table, to));
  for (const auto& [state, values] : moved) RETURN_IF_ERROR(WriteStored(*state, values));
  return absl::OkStatus();
}

}  // namespace moe::runtime
