// Holds what a plan says of its step to what a run of it did: how often each node ran, on how many ranks, and how
// many bytes they sent.
//
//   ASSERT_OK(executor->StartTrace(/*steps=*/1));
//   ASSERT_OK_AND_ASSIGN(const runtime::Reports reports, executor->TrainStep(inputs));
//   executor->StopTrace();
//   ASSERT_OK_AND_ASSIGN(const runtime::Trace trace, executor->GatherTrace());
//   EXPECT_EQ(UnlikeCounted(program, trace), "");
//
// Plain function; any thread.
#pragma once

#include <string>

#include "moe/ir/program.h"
#include "moe/runtime/trace.h"

namespace moe::testing {

// A line for each node, and for what each stage sends to others, that the trace of one training step shows otherwise
// than cost::StepRuns and cost::CommunicationCost count it; empty if there is none. Bytes count within what rounding
// to whole elements, and to whole scales of a wire format, makes of them. Of ragged values, whose rows depend on the
// data, and of permutations, in which a rank may keep its part, no more is sent than could be.
std::string UnlikeCounted(const Program& program, const runtime::Trace& trace);

}  // namespace moe::testing
