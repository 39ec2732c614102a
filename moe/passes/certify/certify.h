// certify: proves that a finished program runs to its end, does everything once, and keeps its buffers apart.
//
// It reads what is stored (module, actions, memory, inventory) and derives the rest anew, so a plan edited by
// hand is held to the same as a fresh one. What is proved, for every program of the schedule:
//
//  (a) Collectives: one program per stage makes the ranks of a stage agree; beyond that, all collectives of a
//      function run on one queue, move only axes inside a stage, and the stages of each comm.stage_reduce
//      meet in one order.
//  (b) No cyclic wait: all stages' actions run against each other with unbuffered rendezvous and the queues
//      described in schedule.h. Stages are deterministic and channels have one reader and one writer each, so
//      one run that ends shows that all do.
//  (c) Each F and B of every chunk and microbatch runs once, each send is received by the recv that names it,
//      one reset comes before the first accumulation, one update and one report per stage after the last.
//  (d) Coverage: every node of the model stands in its chunk alone (or was rewritten by a named pass), every
//      parameter is updated once on each of its stages from its own gradient, every gradient and report is
//      accumulated.
//  (e) Memory: every value lies inside its region, no two overlap while both are needed, in any interleaving
//      of the queues that the waits allow; a slot is not written while its microbatch is still read; the peak
//      is within the limit.
//  (f) Exchanges in flight: what is sent and what is written stays untouched from the start to the done,
//      within a function by the waits of (e), between functions because both lie in bytes that no action in
//      between writes; every start has one done.
//
//   ASSIGN_OR_RETURN(const Certificate c, Certify(program, {}));
//
// Errors (FailedPrecondition) name stage and ranks, action or value. Input may be hostile: every index is
// checked before it is used. Pure.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

struct CertifyOptions {
  double overload = 0;       // Strategy::overload: bounds of ragged values
  int64_t memory_limit = 0;  // bytes of one rank; 0: none
};

struct Certificate {
  int64_t actions = 0;  // of a training step, on all ranks
  int64_t ranks = 0;
  int64_t logical_nodes = 0, rewritten_nodes = 0;
  // "1,184 actions on 8 ranks: no cyclic wait, each action once, every node covered"
  std::string ToString() const;
};

absl::StatusOr<Certificate> Certify(const Program& program, const CertifyOptions& options = {});

// The pass: changes nothing, notes the certificate.
absl::StatusOr<bool> CertifyProgram(Program& program, const PassContext& context);

}  // namespace moe::passes
