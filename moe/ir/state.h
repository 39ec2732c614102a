// What the attributes of a Module's states mean. The text form shows all of them.
//
//   kind     "parameter" | "moment" | "gradient" | "accumulator" | "expert_map" | "working_copy"
//   of       moment, gradient, working_copy: the parameter's name
//   chunk    gradient, accumulator: the chunk that owns it, after staging
//   stages   the stages that have it, after staging
//   reset    accumulators: "step" (zeroed before the first microbatch of a step)
//   combine  accumulators: "sum" | "max"
//
// Parameters also carry: role (emb head norm q kv o up down router eup edown), class ("dense" | "expert"),
// init ("normal" | "ones" | "zeros"), std (of init), decay (whether AdamW's weight decay applies).
//
//   expert_map    the state is stored by expert slots, by the table of that name
//   logical_rows  the rows behind are padding (stored_rows.h)
//
// A table, expert slot -> expert, has: experts, slots (its initial contents), replicas (whether the update
// adds up gradients of replicas).
//
// A working_copy is the parameter rounded to a narrower dtype, for the step to read. The update writes it,
// and whoever sets the parameter from outside also sets the copy (LogicalSession does). It is in no
// checkpoint.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "moe/ir/graph.h"

namespace moe {

// The attribute of that name, or `otherwise` where there is none of that type.
std::string AttrString(const Attributes& attributes, absl::string_view key, absl::string_view otherwise = "");
int64_t AttrInt(const Attributes& attributes, absl::string_view key, int64_t otherwise = 0);
double AttrFloat(const Attributes& attributes, absl::string_view key, double otherwise = 0);
bool AttrBool(const Attributes& attributes, absl::string_view key, bool otherwise = false);

// The argument of `f` with this binding, or null.
Node* FindArg(const Function& f, Binding::Kind kind, absl::string_view name);

}  // namespace moe
