// plan-memory: a place for every byte that a rank touches.
//
// States, inputs, residual sets and boundary slots get regions of their own (see moe/ir/program.h);
// everything else of a function lives in a frame, by liveness, with offsets chosen largest first. All
// functions of a stage share one frame region, since one runs at a time. An op that updates in place takes
// over its operand's bytes where no node reads the old value later; a result bound to a state lies in the
// state's bytes. Where nodes of different queues touch the same bytes, FunctionMemory::waits orders them.
//
// A ragged value gets the bytes of Strategy::overload in the arena, and worst-case bytes in the spill space,
// which is only reserved. Scratch bytes of kernels come from PassContext::workspace.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

// Wants resolved actions. Errors (Internal) name the function and the value that has no legal place.
absl::StatusOr<bool> PlanMemory(Program& program, const PassContext& context);

// StageMemory::futures has the scratch of exchanges whose futures cross functions by this name.
std::string FutureScratchName(const Function& f, const Node& start);

}  // namespace moe::passes
