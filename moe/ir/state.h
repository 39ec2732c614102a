// Bindings: what arguments, results and states of a Module mean. Every key below is an ordinary attribute, so
// the text form shows all of it.
//
// State attributes
//   kind    "parameter" | "moment" | "gradient" | "accumulator" | "expert_map" | "working_copy"
//   of      moment, gradient, working_copy: the parameter's name;  chunk: gradient, accumulator: chunk that
//   owns it (after staging) reset   accumulators: "step" (zeroed before the first microbatch of a step)
//   combine "sum" | "max" parameters also carry: role (emb head norm q kv o up down router eup edown), class
//   ("dense" | "expert"), init ("normal" | "ones" | "zeros"), std (of init), decay (whether AdamW's weight
//   decay applies)
//
//   expert_map     stored by expert slots, by the table of that name;  logical_rows: the rows behind are
//   padding (stored_rows.h). A table, expert slot -> expert, has: experts, slots (its initial contents),
//   replicas (whether the update adds up gradients of replicas)
//
//   working_copy   the parameter rounded to a narrower dtype, for the step to read; the update writes it, and
//   who gives the parameter another value from outside gives it one (LogicalSession does). It is in no
//   checkpoint.
//
// Argument attributes (op "arg") and result bindings
//   kind = "state",    name = S     reads state S / gives its new value (aliases the state's storage)
//   kind = "batch",    name = B     tokens, labels, mask, positions: one microbatch of the data
//   kind = "scalar",   name = N     host-provided per step: inv_tokens, learning_rate, bias1, bias2, ...
//   kind = "boundary", name = V, peer = C   crosses between chunks: value V comes from / goes to chunk C
//   kind = "residual", name = V     crosses from forward.c to backward.c (after split-phases)
//   kind = "weight_residual", name = V  crosses from input_grad.c to weight_grad.c (after split-backward)
//   kind = "future",   name = V     an exchange in flight from one function to a later one (after overlap)
//   kind = "report",   name = R     result only: a scalar or a small vector for the host, which sums those of
//   one name kind = "loss",     name = L     result only, before autodiff: a scalar; the objective is their
//   sum
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "moe/ir/graph.h"

namespace moe {

// "kind" and "name" of a binding; empty when absent.
absl::string_view BindingKind(const Attributes& attributes);
absl::string_view BindingName(const Attributes& attributes);
Attributes Bind(absl::string_view kind, absl::string_view name);

std::string AttrString(const Attributes& attributes, absl::string_view key, absl::string_view otherwise = "");
int64_t AttrInt(const Attributes& attributes, absl::string_view key, int64_t otherwise = 0);
double AttrFloat(const Attributes& attributes, absl::string_view key, double otherwise = 0);
bool AttrBool(const Attributes& attributes, absl::string_view key, bool otherwise = false);

// The argument of `f` bound to (kind, name), or null.
Node* FindArg(const Function& f, absl::string_view kind, absl::string_view name);

}  // namespace moe
