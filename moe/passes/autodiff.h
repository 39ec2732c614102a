// autodiff: adds the backward phase to the logical, one-device graph, and writes the update.
//
//   ASSIGN_OR_RETURN(program.module, model::BuildModel(config, options));
//   RETURN_IF_ERROR(Autodiff(program, {}).status());      // @step: forward and backward; @update; @report
//
// Reverse mode over the gradient functions of the registry. The objective is the sum of all results of @step
// that are bound to a loss; they are removed (reports keep the values). For each parameter p:
//
//   state grad.p {kind = "gradient", of = p, reset = "step"},  and  %n = optim.accumulate(%grad.p, %d)  in @step
//   states adam.m.p, adam.v.p {kind = "moment", of = p},       and  optim.adamw  in @update
//
// The gradient of a parameter used in several scopes (a head tied to the embedding) is a math.add of the
// parts, each in its scope, right before the one optim.accumulate; cutting into stages separates them again.
//
// The gradient of a residual stream is tagged as one. A gradient carries dual = the value it is the gradient
// of, a hint for its placement, and also `like` if it has a dim that none of its operands has (the vocabulary
// of an embedding gradient). Sums of gradients take the scope of the earlier user, whose backward is the last
// to contribute.
//
// Dead code is removed afterwards, before anything is placed.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/ir/graph.h"
#include "moe/ir/program.h"

namespace moe::passes {

struct PassContext;

// Errors: FailedPrecondition if there is no @step, no loss, or a backward already; InvalidArgument naming
// every parameter that reaches no loss, or the node through which a gradient would flow although its op has
// none.
absl::Status Differentiate(Module& module);

absl::StatusOr<bool> Autodiff(Program& program, const PassContext& context);

}  // namespace moe::passes
