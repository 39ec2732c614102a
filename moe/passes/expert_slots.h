// expert-slots: stores the experts of a layer by slots, as the strategy's expert_slots and expert_map say.
// Without them, and where slot i of as many slots as experts holds expert i, nothing changes.
//
// Every MoE layer gets a state "<layer>.expert_map" {kind = "expert_map"}: the table slot -> expert, -1 where
// a slot is empty. Expert parameters, their gradients and moments get the dim of slots for that of experts.
// After routing,
//
//   %expert_slot, %slot' = moe.choose_replicas(%expert, %slot, %map)
//
// and dispatch, combine and their gradients take these for expert and slot. Routing, capacity, counts and
// losses stay with the experts. An empty slot receives nothing and holds zeros.
//
// Where an expert has replicas, the update works by experts: moe.sum_replicas of the gradient is what the
// norm counts, and what moe.copy_to_replicas hands to the optimizer, so replicas stay bitwise the same.
//
// Runs on the graph of one device, after autodiff. Errors (InvalidArgument): a map that does not fit
// (ExpertMapOf), a model without experts, an expert parameter outside of a MoE layer.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

// The strategy has expert_slots= or expert_map=.
bool AsksForExpertSlots(const PassContext& context);

absl::StatusOr<bool> StoreByExpertSlots(Program& program, const PassContext& context);

}  // namespace moe::passes
