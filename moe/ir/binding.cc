#include "moe/ir/binding.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_join.h"

namespace moe {
namespace {

struct KindInfo {
  Binding::Kind kind;
  absl::string_view name;
  bool of_arguments, of_results;
};
constexpr KindInfo kKinds[] = {
    {Binding::kState, "state", true, true},       {Binding::kBatch, "batch", true, false},
    {Binding::kScalar, "scalar", true, false},    {Binding::kBoundary, "boundary", true, true},
    {Binding::kResidual, "residual", true, true}, {Binding::kWeightResidual, "weight_residual", true, true},
    {Binding::kFuture, "future", true, true},     {Binding::kReport, "report", false, true},
    {Binding::kLoss, "loss", false, true},
};

const KindInfo* Find(Binding::Kind kind) {
  for (const KindInfo& info : kKinds) {
    if (info.kind == kind) return &info;
  }
  return nullptr;
}

}  // namespace

absl::string_view BindingKindName(Binding::Kind kind) {
  const KindInfo* info = Find(kind);
  return info == nullptr ? "" : info->name;
}

std::optional<Binding::Kind> ParseBindingKind(absl::string_view name) {
  for (const KindInfo& info : kKinds) {
    if (info.name == name) return info.kind;
  }
  return std::nullopt;
}

bool IsOfArguments(Binding::Kind kind) {
  const KindInfo* info = Find(kind);
  return info != nullptr && info->of_arguments;
}

bool IsOfResults(Binding::Kind kind) {
  const KindInfo* info = Find(kind);
  return info != nullptr && info->of_results;
}

std::string BindingKindNames(bool (*legal)(Binding::Kind)) {
  std::vector<absl::string_view> names;
  for (const KindInfo& info : kKinds) {
    if (legal(info.kind)) names.push_back(info.name);
  }
  std::sort(names.begin(), names.end());
  return absl::StrJoin(names, ", ");
}

}  // namespace moe
