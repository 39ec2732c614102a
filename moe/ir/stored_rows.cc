#include "moe/ir/stored_rows.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/ir/state.h"

namespace moe {
namespace {

std::vector<int64_t> FirstRows(const StoredRows& rows) {
  std::vector<int64_t> first(rows.logical, -1);
  for (size_t r = rows.row.size(); r-- > 0;) {
    if (rows.row[r] >= 0) first[rows.row[r]] = static_cast<int64_t>(r);
  }
  return first;
}

}  // namespace

bool StoredRows::IsIdentity() const {
  if (static_cast<int64_t>(row.size()) != logical) return false;
  for (size_t r = 0; r < row.size(); ++r) {
    if (row[r] != static_cast<int64_t>(r)) return false;
  }
  return true;
}

bool StoredRows::HasReplicas() const {
  const int64_t held = std::count_if(row.begin(), row.end(), [](int64_t r) { return r >= 0; });
  return held > logical;
}

absl::StatusOr<std::vector<double>> StoredRows::ToLogical(absl::Span<const double> stored, bool add) const {
  const int64_t n = static_cast<int64_t>(stored.size() / row.size());
  const std::vector<int64_t> first = FirstRows(*this);
  std::vector<double> out(logical * n, 0.0);
  for (size_t r = 0; r < row.size(); ++r) {
    if (row[r] < 0) continue;
    const double* from = stored.data() + r * n;
    double* to = out.data() + row[r] * n;
    if (first[row[r]] == static_cast<int64_t>(r)) {
      std::copy_n(from, n, to);
    } else if (add) {
      for (int64_t i = 0; i < n; ++i) to[i] += from[i];
    } else if (std::memcmp(from, to, n * sizeof(double)) != 0) {
      return absl::InternalError(
          absl::StrCat("rows ", first[row[r]], " and ", r, " hold replicas of ", row[r], " that differ"));
    }
  }
  return out;
}

std::vector<double> StoredRows::ToStored(absl::Span<const double> logical_values, bool once) const {
  const int64_t n = static_cast<int64_t>(logical_values.size()) / logical;
  const std::vector<int64_t> first = FirstRows(*this);
  std::vector<double> out(row.size() * n, 0.0);
  for (size_t r = 0; r < row.size(); ++r) {
    if (row[r] < 0 || (once && first[row[r]] != static_cast<int64_t>(r))) continue;
    std::copy_n(logical_values.data() + row[r] * n, n, out.data() + r * n);
  }
  return out;
}

std::string StoredRowsProblem(const Module& module, const State& state) {
  const int64_t rows = state.type.rank() > 0 ? state.type.dims[0] : 0;
  if (AttrString(state.attributes, "kind") == "expert_map") {
    const auto slots = state.attributes.find("slots");
    const auto* map =
        slots == state.attributes.end() ? nullptr : std::get_if<std::vector<int64_t>>(&slots->second);
    const int64_t experts = AttrInt(state.attributes, "experts");
    if (map == nullptr || state.type.rank() != 1 || state.type.dtype != DType::kS32 ||
        static_cast<int64_t>(map->size()) != rows || experts < 1 || experts > rows) {
      return absl::StrCat("an expert map is s32[n], with n numbers in `slots` and 1 to n in `experts`");
    }
    return ExpertMapProblem(*map, experts);
  }
  if (const int64_t logical = AttrInt(state.attributes, "logical_rows"); logical < 0 || logical > rows) {
    return absl::StrCat("logical_rows = ", logical, " of ", rows, " rows");
  }
  if (const std::string name = AttrString(state.attributes, "expert_map"); !name.empty()) {
    const State* table = module.FindState(name);
    if (table == nullptr || AttrString(table->attributes, "kind") != "expert_map") {
      return absl::StrCat("it is stored by '", name, "', which is not an expert map");
    }
    if (table->type.rank() != 1 || table->type.dims[0] != rows) {
      return absl::StrCat("it has ", rows, " rows, its expert map '", name, "' another number");
    }
  }
  return "";
}

std::optional<StoredRows> StoredRowsOf(const Module& module, const State& state) {
  StoredRows rows;
  if (const int64_t logical = AttrInt(state.attributes, "logical_rows"); logical > 0) {
    rows.logical = logical;
    for (int64_t r = 0; r < state.type.dims[0]; ++r) rows.row.push_back(r < logical ? r : -1);
    return rows;
  }
  const std::string name = AttrString(state.attributes, "expert_map");
  const State* table = name.empty() ? nullptr : module.FindState(name);
  if (table == nullptr) return std::nullopt;
  rows.logical = AttrInt(table->attributes, "experts");
  const auto slots = table->attributes.find("slots");
  if (slots == table->attributes.end()) return std::nullopt;
  if (const auto* map = std::get_if<std::vector<int64_t>>(&slots->second)) rows.row = *map;
  return rows;
}

Type LogicalType(const Module& module, const State& state) {
  const std::optional<StoredRows> rows = StoredRowsOf(module, state);
  if (!rows) return state.type;
  Type type(state.type.dtype, state.type.dims);
  type.dims[0] = rows->logical;
  return type;
}

std::string ExpertMapProblem(absl::Span<const int64_t> map, int64_t experts) {
  std::vector<bool> held(experts, false);
  for (size_t s = 0; s < map.size(); ++s) {
    if (map[s] < -1 || map[s] >= experts) {
      return absl::StrCat("slot ", s, " holds ", map[s], "; legal are -1 (empty) and the experts 0 to ",
                          experts - 1);
    }
    if (map[s] >= 0) held[map[s]] = true;
  }
  std::vector<int64_t> missing;
  for (int64_t e = 0; e < experts && missing.size() < 12; ++e) {
    if (!held[e]) missing.push_back(e);
  }
  if (missing.empty()) return "";
  return absl::StrCat(missing.size() == 1 ? "expert " : "experts ", absl::StrJoin(missing, ", "),
                      missing.size() == 1 ? " has" : " have", " no slot; every expert needs one");
}

}  // namespace moe
