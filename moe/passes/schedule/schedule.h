// schedule: turns the table of cells into the actions of every stage, for the programs "train_step" and
// "eval" (forwards alone).
//
// A value that crosses stages becomes a send right after its producer and a recv just before its consumer.
// What actions mean at run time, and what `certify` assumes:
//
//  - Each stage runs its actions in order on its compute queue. It only hands a send over: the send waits in
//    a queue of its own, first in, first out, one per (stage, peer stage, direction). Values that go forward
//    ("act") and gradients that go back ("grad") have separate queues. A recv blocks the compute queue until
//    the matching send arrives.
//  - Nothing is buffered: a send at the head of its queue completes together with the recv that takes it.
//  - A function or a recv may write the boundary slot of a send again only after the send has completed; the
//    writer waits for that.
//
// Slots are chosen along a simulated run (a backward costs two forwards, each half of it one, a transfer a
// quarter) and reused only when they were free at that moment in it. So every wait for a slot points to
// something earlier in one consistent history, and no choice of slots can make a table that runs stand still.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

// The phases must be split. Uses Program::schedule.table, or the strategy's where there is none.
absl::StatusOr<bool> ResolveSchedule(Program& program, const PassContext& context);

}  // namespace moe::passes
