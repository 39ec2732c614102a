// What a program needs before it can run and train, checked and named together with the pass that gives it. A
// program of the default pipeline has all of it; one of a pipeline that a user wrote may lack anything.
//
//   RETURN_IF_ERROR(CheckTrainable(program));
//   ASSIGN_OR_RETURN(const auto executor, runtime::Executor::Create(program, options));
//
// These checks name the first thing that is absent, in the order in which the passes add them. Whether the
// plan is right is for certify to say. Errors are FailedPrecondition. Pure functions.
#pragma once

#include "absl/status/status.h"
#include "moe/ir/program.h"

namespace moe {

// The executor can run it: chunks on stages, placed nodes, lowered conversions, phases, actions and memory.
absl::Status CheckRunnable(const Program& program);

// A step of it trains: it can run, and some function updates every parameter.
absl::Status CheckTrainable(const Program& program);

}  // namespace moe
