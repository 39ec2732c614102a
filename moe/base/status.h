// Status macros: early return from functions that give absl::Status or absl::StatusOr.
//
//   RETURN_IF_ERROR(WriteFile(path, text));
//   ASSIGN_OR_RETURN(std::unique_ptr<Module> module, ParseModule(text));
//
// Annotate() prefixes an error with where it happened and keeps its code.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace moe {

inline absl::Status Annotate(const absl::Status& status, absl::string_view where) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(where, ": ", status.message()));
}

}  // namespace moe

#define MOE_CONCAT_(a, b) a##b
#define MOE_CONCAT(a, b) MOE_CONCAT_(a, b)

#define RETURN_IF_ERROR(expr)                  \
  do {                                         \
    ::absl::Status moe_status_ = (expr);       \
    if (!moe_status_.ok()) return moe_status_; \
  } while (false)

#define ASSIGN_OR_RETURN(lhs, expr) MOE_ASSIGN_OR_RETURN_(MOE_CONCAT(moe_or_, __LINE__), lhs, expr)
#define MOE_ASSIGN_OR_RETURN_(var, lhs, expr) \
  auto var = (expr);                          \
  if (!var.ok()) return var.status();         \
  lhs = *std::move(var)
