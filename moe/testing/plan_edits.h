// Small edits to a compiled plan, as a slip of the hand or a bug in a pass would make them: what `certify`
// must refuse, or what changes nothing that matters.
//
//   const std::string what = RandomEdit(&plan, seed);   // "drops train_step stage 1: F1.2"
//   EXPECT_FALSE(passes::Certify(plan.program, {}).ok()) << what;
//
// The same seed gives the same edit of the same plan. Plain functions.
#pragma once

#include <cstdint>
#include <string>

#include "moe/plan/plan.h"

namespace moe::testing {

// Edits one thing: an action (dropped, doubled, swapped with its neighbour, another microbatch, another slot,
// moved to another stage), a buffer (moved, shrunk), a wait (dropped), a slot count, a node (operand
// exchanged for another of its type), a binding, the inventory, an exchange in flight (its start, its done,
// its bytes). Says what it did; "" if the choice did not apply to this plan.
std::string RandomEdit(plan::Plan* plan, uint64_t seed);

}  // namespace moe::testing
