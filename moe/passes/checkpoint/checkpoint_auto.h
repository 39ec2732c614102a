// The choice of checkpoint=auto: the least recomputation that fits a byte budget. Part of `checkpoint`, whose
// header says what is optimised, and where the budget comes from.
//
//   ASSIGN_OR_RETURN(AutoChoice c, ChooseAutomatically(program, context));
//   Recompute(chunk, Select(*chunk, c.nodes.at("chunk0")));
//
// Reads the program; changes nothing.
#pragma once

#include <map>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

struct AutoChoice {
  std::map<std::string, std::set<std::string>> nodes;  // function -> first results of what is computed again
  std::string note;                                    // per stage: bytes and budget
};

// Errors (InvalidArgument): no budget, or nothing fits it; FailedPrecondition: a memory limit where
// plan-memory does not follow.
absl::StatusOr<AutoChoice> ChooseAutomatically(const Program& program, const PassContext& context);

// The nodes of the function by the names of their first results.
std::set<Node*> Select(const Function& function, const std::set<std::string>& names);

}  // namespace moe::passes
